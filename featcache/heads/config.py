"""HeadConfig: all options of training a head, as one frozen record that checks itself.

Its fields are the command line's options, the arguments of `train_head` and `sweep`, and what a run stores. A recipe is
such a record with a name; a sweep trains many of them on one or several caches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from featcache.config import Option, options_of
from featcache.errors import InvalidOption
from featcache.heads.architectures import Activation, Architecture, parse_head
from featcache.heads.own import Arguments, OwnFactory, decode_arguments, encode_arguments, own_path
from featcache.rows.options import LARGEST_SEED, RowOptions
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, DRAW

if TYPE_CHECKING:
    from featcache.rows.target import HeadTarget

# With fewer rows, the mean and deviation of a batch are too noisy for batch norm.
SMALLEST_NORMED_BATCH = 8
STEP_OPTIONS = (
    *("activation", "dropout", "batch_norm", "mixup", "noise", "lr", "weight_decay", "l1"),
    *("optimizer", "momentum", "schedule", "label_smoothing", "class_weights", "loss", "standardize"),
    *("train_views", "head_batch_size", "max_epochs", "patience", "min_delta"),
)
# These have no effect on a custom module, which defines its own layers.
PERCEPTRON_OPTIONS = ("activation", "dropout", "batch_norm")
# These have no effect with a custom loss.
LOSS_OPTIONS = ("loss", "label_smoothing", "class_weights")
_HEAD = "The head"


@dataclass(frozen=True, kw_only=True)
class HeadConfig(RowOptions):
    """The options of training one head. Equal configs on equal features give equal heads on one machine.

    `loss` applies to targets of numbers only; this is checked when there is a cache, and so a target.
    `standardize` is on because one learning rate then suits features of any scale. With more than a million train rows,
    mean and deviation are those of a sample of 131,072, and the run records that. `train_views` is None for a cache
    without augmented views, and for a head without epochs.

    Options of training by gradient steps (STEP_OPTIONS) must keep their defaults for heads that a solver computes
    (logreg, ridge, centroid, knn) or that is made of texts; these use no random numbers.

    A custom head is a class or a function. Its name is `own:` and its path; its arguments are in `head_arguments`, a
    mapping that is stored as JSON. `own_loss` is the path of a custom loss, which replaces `loss` for training and for
    val_loss. Neither is an option of the command line (heads/own.py).

    Raises InvalidOption or UnknownName for a value that cannot be used.
    """

    PANEL: ClassVar[str] = "How it is trained"

    head: Annotated[
        str,
        Option(
            help="linear, mlp, logreg, ... All are linear, mlp:SIZES, logreg, ridge, centroid, knn, and text:TEMPLATE "
            "for zero-shot. mlp:128,64 (or mlp:128-64) has two hidden layers; logreg, ridge, centroid and knn are "
            'solved at once, not trained by steps. "text:a photo of a {}" is made of the class names, for a backbone '
            "open_clip:NAME; text+linear:TEMPLATE is trained from there.",
            metavar="<head>",
            completion="heads",
            panel=_HEAD,
        ),
    ] = "mlp:128,64"
    activation: Annotated[
        Activation,
        Option(
            help="Activation after each hidden layer: relu, leaky_relu, ...",
            metavar="<name>",
            panel=_HEAD,
            advanced=True,
        ),
    ] = "relu"
    dropout: Annotated[
        float,
        Option(
            help="Dropout after each hidden layer. The probability with which an output is set to 0 in training.",
            metavar="<probability>",
            least=0,
            below=1,
            panel=_HEAD,
        ),
    ] = 0.0
    batch_norm: Annotated[
        bool,
        Option(
            help="Normalise each hidden layer over the batch; folded into the layer that is stored.",
            panel=_HEAD,
            advanced=True,
        ),
    ] = False
    mixup: Annotated[
        float,
        Option(
            help="Train on mixtures of two rows, in proportions drawn from Beta(alpha, alpha); 0 for none.",
            metavar="<alpha>",
            least=0,
            advanced=True,
        ),
    ] = 0.0
    noise: Annotated[
        float,
        Option(
            help="Standard deviation of Gaussian noise on the train features, after standardising; 0 for none.",
            metavar="<sigma>",
            least=0,
            advanced=True,
        ),
    ] = 0.0
    lr: Annotated[float, Option(help="Learning rate.", metavar="<rate>", above=0)] = 1e-3
    weight_decay: Annotated[
        float,
        Option(
            help="Weight decay. adamw subtracts it from the weights, the others add it to the gradient.",
            metavar="<factor>",
            least=0,
            advanced=True,
        ),
    ] = 0.0
    l1: Annotated[
        float,
        Option(
            help="L1 penalty: this factor times the sum of absolute weights and biases is added to the loss.",
            metavar="<factor>",
            least=0,
            advanced=True,
        ),
    ] = 0.0
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"],
        Option(
            help="The optimizer. sgd has a momentum of 0.9; another one is set in Python and in --grid.", advanced=True
        ),
    ] = "adam"
    momentum: Annotated[
        float, Option(help="Momentum, for sgd.", metavar="<factor>", least=0, below=1, python_only=True)
    ] = 0.9
    schedule: Annotated[
        Literal["constant", "cosine", "plateau"],
        Option(
            help="Learning rate: constant, cosine or plateau. cosine: it falls to 0 over --max-epochs. plateau: it is "
            "divided by 10 when val loss has not fallen for more than half of --patience.",
            metavar="<schedule>",
        ),
    ] = "constant"
    loss: Annotated[
        Literal["mse", "l1", "huber"],
        Option(help="The loss for a target of numbers: squared, absolute, or Huber's.", advanced=True),
    ] = "mse"
    label_smoothing: Annotated[
        float,
        Option(
            help="Part of each label that is spread over all classes.",
            metavar="<fraction>",
            least=0,
            below=1,
            advanced=True,
        ),
    ] = 0.0
    class_weights: Annotated[
        Literal["none", "balanced"],
        Option(help="balanced: rare classes count as much in the loss as frequent ones.", advanced=True),
    ] = "none"
    standardize: Annotated[
        bool,
        Option(
            help="Standardise features with the mean and standard deviation of train; the stored head takes plain "
            "features.",
            flags=("--standardize/--no-standardize",),
            advanced=True,
        ),
    ] = True
    head_batch_size: Annotated[int, Option(help="Rows per step.", metavar="<rows>", least=1, advanced=True)] = 64
    max_epochs: Annotated[int, Option(help="Maximum number of epochs.", metavar="<epochs>", least=1)] = 50
    patience: Annotated[
        int,
        Option(
            help="Stop after N epochs of no gain. A gain is a val loss that is lower by min_delta (in Python "
            "and in --grid).",
            metavar="<epochs>",
            least=1,
        ),
    ] = 5
    min_delta: Annotated[
        float,
        Option(
            help="How much lower a val loss must be to count as lower.", metavar="<loss>", least=0, python_only=True
        ),
    ] = 0.001
    seed: Annotated[
        int,
        Option(
            help="Seed of weights, order and noise. Initial weights, order of the rows, dropout, mixup and "
            "noise follow from it.",
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
        object.__setattr__(self, "head_arguments", encode_arguments(self.head_arguments))
        super().__post_init__()
        # One spelling of each head: mlp:8-4 becomes mlp:8,4.
        object.__setattr__(self, "head", str(parse_head(self.head)))
        self._require_effect([name for name, default in _defaults().items() if getattr(self, name) != default])
        between = [f"dropout {self.dropout}"] * (self.dropout > 0) + ["batch norm"] * self.batch_norm
        if between and not self.architecture.hidden:
            raise InvalidOption(
                f"{' and '.join(between)} follows hidden layers, and the head {self.head} has none",
                hint="leave it out, or choose a head such as mlp:128,64",
            )
        if self.batch_norm and self.head_batch_size < SMALLEST_NORMED_BATCH:
            raise InvalidOption(
                f"expected --head-batch-size of at least {SMALLEST_NORMED_BATCH} with --batch-norm, "
                f"got {self.head_batch_size}",
                hint="the mean and deviation of so few rows are too noisy",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], base: HeadConfig | None = None) -> HeadConfig:
        """Make a config from the given options, with all others from `base`, or their defaults.

        Args:
            given: Options by name; `loss` may be a function.
            base: The config to change; None for the defaults.

        Raises:
            InvalidOption: A value cannot be used, or a given option has no effect, even if it equals its default.
            UnknownName: There is no such head.
        """
        if callable(given.get("loss")):
            given = {**given, "own_loss": own_path(given["loss"], "loss")}
            del given["loss"]
        config = cls(**given) if base is None else replace(base, **given)
        config._require_effect(given)
        return config

    def _require_effect(self, changed: Collection[str]) -> None:
        """Raise InvalidOption if one of the `changed` options has no effect on this head."""
        idle = [_flag(name) for name in STEP_OPTIONS if name in changed]
        if self.architecture.solved and idle:
            raise InvalidOption(
                f"the head {self.head} is solved, not trained by steps: {', '.join(idle)} would do nothing",
                hint=f"leave out {', '.join(idle)}, or choose linear or mlp:128,64",
            )
        self._require_own_effect(changed)
        if "momentum" in changed and self.optimizer != "sgd":
            raise InvalidOption(
                f"momentum belongs to sgd, and the optimizer is {self.optimizer}",
                hint="--optimizer sgd, or leave it out",
            )

    def require_kind(self, target: HeadTarget) -> None:
        """Raise InvalidOption if a changed option has no effect on this kind of target."""
        idle = {"classes": ("loss",), "lists": ("loss",), "numbers": ("class_weights", "label_smoothing")}[target.kind]
        changed = [_flag(name) for name in idle if getattr(self, name) != _defaults()[name]]
        if changed:
            what = {"classes": "classes", "lists": "several classes per image", "numbers": "numbers"}[target.kind]
            raise InvalidOption(
                f"the target {' and '.join(target.columns)} is {what}, for which {', '.join(changed)} has no effect",
                hint=f"leave out {', '.join(changed)}, or name another --target",
            )

    def _require_own_effect(self, changed: Collection[str]) -> None:
        """Raise InvalidOption if one of the `changed` options has no effect on a custom head or loss."""
        for unfit, what, options in (
            (self.architecture.own, f"the head {self.head} has its own layers", PERCEPTRON_OPTIONS),
            (self.own_loss is not None, f"the loss {self.own_loss} is a custom one", LOSS_OPTIONS),
        ):
            if unfit and (idle := [_flag(name) for name in options if name in changed]):
                raise InvalidOption(f"{what}: {', '.join(idle)} would do nothing", hint=f"leave out {', '.join(idle)}")
        if self.head_arguments and not self.architecture.own:
            raise InvalidOption(f"head_arguments apply to custom heads only, and the head is {self.head}")
        if self.own_loss is not None and self.architecture.solved:
            raise InvalidOption(f"the head {self.head} is solved, and a custom loss would do nothing")

    @property
    def own(self) -> OwnFactory | None:
        """The factory of a custom head; None for a built-in one."""
        return self.own_by(None)

    def own_by(self, given: Callable[..., Any] | None) -> OwnFactory | None:
        """The same, with the factory `given`, if any. Raises InvalidOption if one is given for a built-in head."""
        architecture = self.architecture
        if architecture.own:
            assert isinstance(self.head_arguments, tuple)
            return OwnFactory(path=architecture.path, arguments=decode_arguments(self.head_arguments), given=given)
        if given is not None:
            raise InvalidOption(f"expected no factory for the head {self.head}, which featcache builds")
        return None

    @property
    def draws_views(self) -> bool:
        """Whether an epoch has one drawn view of each train image, instead of all its views."""
        return (self.train_views or DEFAULT_TRAIN_VIEWS) == DRAW and not self.architecture.solved

    def for_views(self, views: int) -> HeadConfig:
        """The options for a cache with `views` views of each train image, with the default of `train_views` filled in.

        Raises InvalidOption if `train_views` is given and there is only one view.
        """
        if views == 1 and self.train_views is not None:
            raise InvalidOption(
                f"--train-views {self.train_views} has no effect: the cache has one view of each image, the plain one",
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
        return values | {"head_arguments": decode_arguments(self.head_arguments)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadConfig:
        """Read the config that `to_json` wrote. Raises InvalidOption for unknown fields."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidOption(f"unknown options of a head: {', '.join(sorted(unknown))}")
        return cls(**values)


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in options_of(HeadConfig)}


def _flag(name: str) -> str:
    return next(field.flag for field in options_of(HeadConfig) if field.name == name)
