"""What can be asked of a head's training: one frozen record that checks itself.

Its fields are the command line's options, the arguments of `train_head` and `sweep`, and what a run stores. A recipe is
such a record with a name; a sweep is many of them over one or several caches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from featcache.config import Option, options_of
from featcache.errors import InvalidOption
from featcache.heads.architectures import Activation, Architecture, parse_head
from featcache.heads.own import Arguments, OwnFactory, own_path, read_arguments, stored_arguments
from featcache.rows.options import LARGEST_SEED, RowOptions
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, DRAW

if TYPE_CHECKING:
    from featcache.rows.target import HeadTarget

# With fewer rows batch norm has nothing to take a deviation of.
SMALLEST_NORMED_BATCH = 8
STEP_OPTIONS = (
    *("activation", "dropout", "batch_norm", "mixup", "noise", "lr", "weight_decay", "l1"),
    *("optimizer", "momentum", "schedule", "label_smoothing", "class_weights", "loss", "standardize"),
    *("train_views", "head_batch_size", "max_epochs", "patience", "min_delta"),
)
# What a module of one's own has inside itself.
PERCEPTRON_OPTIONS = ("activation", "dropout", "batch_norm")
# What a loss of one's own does itself.
LOSS_OPTIONS = ("loss", "label_smoothing", "class_weights")
_HEAD = "The head"


@dataclass(frozen=True, kw_only=True)
class HeadConfig(RowOptions):
    """The options of one training. Equal configs on equal features give equal heads on one machine.

    `loss` belongs to numbers; whether the target is numbers is known, and checked, when there is a cache.
    `standardize` is on because one learning rate then suits small features and large ones; of more than a million train
    rows a sample of 131,072 is looked at, and the run says so. `train_views` is None for a cache without augmented
    views, and for a head without epochs.

    What belongs to training by steps (STEP_OPTIONS) has to be left as it is for a head that is solved (logreg, ridge,
    centroid, knn), which draws nothing.

    A head of one's own is a class or a function, and is written `own:` and its path; its arguments stand in
    `head_arguments`, a mapping that is kept as JSON. `own_loss` is the path of a loss of one's own, which takes the
    place of `loss` for training and for val_loss. Neither is an option of the command line (heads/own.py).

    Raises InvalidOption or UnknownName for a value that cannot be used.
    """

    PANEL: ClassVar[str] = "How it is trained"

    head: Annotated[
        str,
        Option(
            help="linear; mlp: and the sizes of hidden layers, as in mlp:128,64 or mlp:128-64; or solved at once: "
            "logreg, ridge, centroid, knn.",
            metavar="<head>",
            completion="heads",
            panel=_HEAD,
        ),
    ] = "mlp:128,64"
    activation: Annotated[
        Activation, Option(help="What follows each hidden layer: relu, leaky_relu, ...", metavar="<name>", panel=_HEAD)
    ] = "relu"
    dropout: Annotated[
        float,
        Option(
            help="Probability with which an output of a hidden layer is set to 0 in training.",
            metavar="<probability>",
            least=0,
            below=1,
            panel=_HEAD,
        ),
    ] = 0.0
    batch_norm: Annotated[
        bool,
        Option(help="Normalise each hidden layer over the batch; folded into the layer that is stored.", panel=_HEAD),
    ] = False
    mixup: Annotated[
        float,
        Option(
            help="Train on mixtures of two rows, in proportions drawn from Beta(alpha, alpha); 0 for none.",
            metavar="<alpha>",
            least=0,
        ),
    ] = 0.0
    noise: Annotated[
        float,
        Option(
            help="Standard deviation of Gaussian noise on the train features, after standardising; 0 for none.",
            metavar="<sigma>",
            least=0,
        ),
    ] = 0.0
    lr: Annotated[float, Option(help="Learning rate.", metavar="<rate>", above=0)] = 1e-3
    weight_decay: Annotated[
        float,
        Option(
            help="Weight decay: adamw takes it off the weights, the others add it to the gradient.",
            metavar="<factor>",
            least=0,
        ),
    ] = 0.0
    l1: Annotated[
        float,
        Option(
            help="Times the sum of absolute values of all weights and biases, added to the loss.",
            metavar="<factor>",
            least=0,
        ),
    ] = 0.0
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Option(help="What takes the steps.")] = "adam"
    momentum: Annotated[float, Option(help="Momentum, for sgd.", metavar="<factor>", least=0, below=1)] = 0.9
    schedule: Annotated[
        Literal["constant", "cosine", "plateau"],
        Option(
            help="How the learning rate falls. cosine: to 0 over --max-epochs. plateau: to a tenth where val loss has "
            "not fallen for more than half of --patience."
        ),
    ] = "constant"
    loss: Annotated[
        Literal["mse", "l1", "huber"], Option(help="The loss for a target of numbers: squared, absolute, or Huber's.")
    ] = "mse"
    label_smoothing: Annotated[
        float,
        Option(help="Part of each label that is spread over all classes.", metavar="<fraction>", least=0, below=1),
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"],
        Option(help="balanced: rare classes count as much in the loss as frequent ones."),
    ] = "none"
    standardize: Annotated[
        bool,
        Option(
            help="Train on features of mean 0 and deviation 1, as train has them; the stored head needs neither.",
            flags=("--standardize/--no-standardize",),
        ),
    ] = True
    head_batch_size: Annotated[int, Option(help="Rows per step.", metavar="<rows>", least=1)] = 64
    max_epochs: Annotated[int, Option(help="Largest number of epochs.", metavar="<epochs>", least=1)] = 50
    patience: Annotated[
        int, Option(help="Stop after this many epochs without a lower val loss.", metavar="<epochs>", least=1)
    ] = 5
    min_delta: Annotated[
        float, Option(help="How much lower a val loss must be to count as lower.", metavar="<loss>", least=0)
    ] = 0.001
    seed: Annotated[
        int,
        Option(
            help="Initial weights, order of the rows, dropout, mixup and noise.",
            metavar="<seed>",
            least=0,
            greatest=LARGEST_SEED,
        ),
    ] = 0

    head_arguments: Mapping[str, Any] | Arguments = ()
    own_loss: str | None = None

    def __post_init__(self) -> None:
        if callable(self.head):
            object.__setattr__(self, "head", f"own:{own_path(self.head, 'head')}")
        object.__setattr__(self, "head_arguments", stored_arguments(self.head_arguments))
        super().__post_init__()
        # One spelling of a head: mlp:8-4 is mlp:8,4.
        object.__setattr__(self, "head", str(parse_head(self.head)))
        self._require_effect([name for name, default in _defaults().items() if getattr(self, name) != default])
        between = [f"dropout {self.dropout}"] * (self.dropout > 0) + ["batch norm"] * self.batch_norm
        if between and not self.architecture.hidden:
            raise InvalidOption(
                f"{' and '.join(between)} follows hidden layers, and the head {self.head} has none",
                hint="leave it out, or take a head such as mlp:128,64",
            )
        if self.batch_norm and self.head_batch_size < SMALLEST_NORMED_BATCH:
            raise InvalidOption(
                f"expected --head-batch-size of at least {SMALLEST_NORMED_BATCH} with --batch-norm, "
                f"got {self.head_batch_size}",
                hint="a batch's own mean and deviation say nothing for so few rows",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], base: HeadConfig | None = None) -> HeadConfig:
        """The config with the options that were given, and all others as `base` has them, or their defaults.

        `loss` may be a function. Raises InvalidOption also for an option that was given and would do nothing, whatever
        its value.
        """
        if callable(given.get("loss")):
            given = {**given, "own_loss": own_path(given["loss"], "loss")}
            del given["loss"]
        config = cls(**given) if base is None else replace(base, **given)
        config._require_effect(given)
        return config

    def _require_effect(self, changed: Collection[str]) -> None:
        """Raises InvalidOption where one of these options does nothing for this head."""
        idle = [_flag(name) for name in STEP_OPTIONS if name in changed]
        if self.architecture.solved and idle:
            raise InvalidOption(
                f"the head {self.head} is solved, not trained by steps: {', '.join(idle)} would do nothing",
                hint=f"leave out {', '.join(idle)}, or take linear or mlp:128,64",
            )
        self._require_own_effect(changed)
        if "momentum" in changed and self.optimizer != "sgd":
            raise InvalidOption(
                f"--momentum belongs to sgd, and the optimizer is {self.optimizer}",
                hint="--optimizer sgd, or leave it out",
            )

    def require_kind(self, target: HeadTarget) -> None:
        """Raises InvalidOption for an option that does nothing for this kind of target."""
        idle = {"classes": ("loss",), "lists": ("loss",), "numbers": ("class_weights", "label_smoothing")}[target.kind]
        changed = [_flag(name) for name in idle if getattr(self, name) != _defaults()[name]]
        if changed:
            what = {"classes": "classes", "lists": "several classes an image", "numbers": "numbers"}[target.kind]
            raise InvalidOption(
                f"the target {' and '.join(target.columns)} is {what}, for which {', '.join(changed)} does nothing",
                hint=f"leave out {', '.join(changed)}, or name another --target",
            )

    def _require_own_effect(self, changed: Collection[str]) -> None:
        """The same of heads and losses of one's own."""
        for unfit, what, options in (
            (self.architecture.own, f"the head {self.head} has its own layers", PERCEPTRON_OPTIONS),
            (self.own_loss is not None, f"the loss {self.own_loss} is one's own", LOSS_OPTIONS),
        ):
            if unfit and (idle := [_flag(name) for name in options if name in changed]):
                raise InvalidOption(f"{what}: {', '.join(idle)} would do nothing", hint=f"leave out {', '.join(idle)}")
        if self.head_arguments and not self.architecture.own:
            raise InvalidOption(f"head_arguments are those of a head of one's own, and the head is {self.head}")
        if self.own_loss is not None and self.architecture.solved:
            raise InvalidOption(f"the head {self.head} is solved, and a loss of one's own would do nothing")

    @property
    def own(self) -> OwnFactory | None:
        """What makes the head, where it is one's own."""
        return self.own_by(None)

    def own_by(self, given: Callable[..., Any] | None) -> OwnFactory | None:
        """The same, made by what is given. Raises InvalidOption where the head is not one's own."""
        architecture = self.architecture
        if architecture.own:
            assert isinstance(self.head_arguments, tuple)
            return OwnFactory(path=architecture.path, arguments=read_arguments(self.head_arguments), given=given)
        if given is not None:
            raise InvalidOption(f"expected no factory for the head {self.head}, which featcache builds")
        return None

    @property
    def draws_views(self) -> bool:
        """Whether an epoch has one view of each train image that has several."""
        return (self.train_views or DEFAULT_TRAIN_VIEWS) == DRAW and not self.architecture.solved

    def for_views(self, views: int) -> HeadConfig:
        """The options on a cache with so many views of each train image: what was left to a default is filled in.

        Raises InvalidOption where `train_views` is given and there is one view.
        """
        if views == 1 and self.train_views is not None:
            raise InvalidOption(
                f"--train-views {self.train_views} says nothing: the cache has one view of each image, the plain one",
                hint="leave it out, or extract with --views 4",
            )
        if views == 1 or self.architecture.solved:
            return self
        return replace(self, train_views=self.train_views or DEFAULT_TRAIN_VIEWS)

    @property
    def architecture(self) -> Architecture:
        """`head`, parsed."""
        return parse_head(self.head)

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        assert isinstance(self.head_arguments, tuple)
        return values | {"head_arguments": read_arguments(self.head_arguments)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadConfig:
        """The config that `to_json` described. Raises InvalidOption for fields that are none."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidOption(f"unknown options of a head: {', '.join(sorted(unknown))}")
        return cls(**values)


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in options_of(HeadConfig)}


def _flag(name: str) -> str:
    return next(field.flag for field in options_of(HeadConfig) if field.name == name)
