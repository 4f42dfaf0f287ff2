# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] lang="en"
# # CIFAR-10 with frozen networks: the notebook that featcache began as
#
# The first version of this notebook trained seven small networks on raw pixels, then put a small classifier (a *head*)
# on two large networks whose weights never change, VGG16 and Inception v3. VGG16 took 35 minutes for 6 epochs.
# Inception v3 was given up after more than an hour. Nearly all of that time went into computing the same numbers
# again in every epoch.
#
# Here are the same experiments, in the same order. The frozen networks run once over the images, and their outputs (the
# *features*) are stored. After that a head trains in seconds.

# %% [markdown] lang="pt"
# # CIFAR-10 com redes congeladas: o notebook que deu origem ao featcache
#
# A primeira versão deste notebook treinou sete redes pequenas sobre pixels crus. Depois colocou um classificador
# pequeno (a *cabeça*, em inglês *head*) sobre duas redes grandes cujos pesos nunca mudam: VGG16 e Inception v3. A VGG16
# levou 35 minutos para 6 épocas. A Inception v3 foi interrompida depois de mais de uma hora. Quase todo esse tempo foi
# gasto calculando de novo, em cada época, os mesmos números.
#
# Aqui estão os mesmos experimentos, na mesma ordem. As redes congeladas processam as imagens uma única vez, e as saídas
# delas (as *features*) ficam guardadas. Depois disso, uma cabeça treina em segundos.

# %% [markdown] lang="en"
# ## Install
#
# On Colab, put a wheel of featcache (`python -m build` makes one from a checkout) into the folder `featcache` of your
# Drive. That folder will also hold images, features and trained heads, so they are still there tomorrow. Elsewhere,
# install featcache before you start the notebook; then this cell does nothing.

# %% [markdown] lang="pt"
# ## Instalação
#
# No Colab, coloque um wheel do featcache (`python -m build` cria um a partir do código-fonte) na pasta `featcache` do
# seu Drive. Essa pasta também vai guardar as imagens, as features e as cabeças treinadas, que assim continuam lá
# amanhã. Fora do Colab, instale o featcache antes de abrir o notebook; nesse caso esta célula não faz nada.

# %%
import importlib.util
from pathlib import Path

folder = Path()
if importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"):
    from google.colab import drive

    drive.mount("/content/drive")
    folder = Path("/content/drive/MyDrive/featcache")
    if not importlib.util.find_spec("featcache"):
        print("installing featcache from", folder)
        # %pip install --quiet {next(folder.glob("featcache-*.whl"))}

# %% [markdown] lang="en"
# ## Settings
#
# The defaults are the notebook's own task: all 60,000 images (a download of 170 MB) and the networks' ImageNet weights
# (about 630 MB). On a machine without a GPU set `limit = 2000`: then 2,000 images of train and 2,000 of test are used,
# and the accuracies are lower.

# %% [markdown] lang="pt"
# ## Configurações
#
# Os valores padrão são os da tarefa original: todas as 60.000 imagens (um download de 170 MB) e os pesos das redes
# treinadas na ImageNet (cerca de 630 MB). Em um computador sem GPU, use `limit = 2000`: nesse caso são usadas 2.000
# imagens de treino e 2.000 de teste, e as acurácias são menores.

# %% tags=["parameters"]
images = "cifar10"
limit = None
weights = {"vgg16": "default", "inception_v3": "default"}
seeds = 3

# %% [markdown] lang="en"
# ## What this machine has
#
# The device that `auto` chooses is the one that computes the features below.

# %% [markdown] lang="pt"
# ## O que este computador tem
#
# O dispositivo que `auto` escolhe é o que calcula as features abaixo.

# %%
# %run -m featcache doctor

# %% [markdown] lang="en"
# ## The data
#
# The images are read where they are, and nothing is unpacked.

# %% [markdown] lang="pt"
# ## Os dados
#
# As imagens são lidas onde estão; nada é descompactado.

# %%
import featcache

data, runs = folder / "data", folder / "runs"
places = {"data_dir": data, "limit": limit}

with featcache.open_images(images, datasets_dir=data / "datasets") as source:
    for split in source.splits():
        print(f"{split}: {len(source.samples(split)):,} images")

# %% [markdown] lang="en"
# A look at twenty images, with their labels:

# %% [markdown] lang="pt"
# Vinte imagens, com os rótulos:

# %%
from IPython.display import Image

# %run -m featcache -- --data-dir "{data}" show "{images}" --limit 20 --output batch.png
Image("batch.png")

# %% [markdown] lang="en"
# ## Seven networks on raw pixels
#
# `pixels` is the "network" that computes nothing: its features are the resized image. The seven experiments are
# *recipes*: the head, its regulariser and its activation as the notebook had them. All seven are trained together,
# each with several seeds, on 80 % of the train images; the other 20 % (*val*) decide when to stop.

# %% [markdown] lang="pt"
# ## Sete redes sobre pixels crus
#
# `pixels` é a "rede" que não calcula nada: as features são a própria imagem redimensionada. Os sete experimentos são
# *receitas* (*recipes*): a cabeça, o regularizador e a ativação como no notebook. Os sete são treinados juntos, cada um
# com várias sementes, em 80 % das imagens de treino; os outros 20 % (*val*) decidem quando parar.

# %%
from featcache.notebook import recipe, recipe_names, reproductions, sweep_recipes

pixels = featcache.extract(images, "pixels", image_size=32, normalize="half", **places)
mlps = [recipe(name) for name in recipe_names() if recipe(name).backbone == "pixels"]
perceptrons = sweep_recipes(pixels, mlps, seeds=seeds, runs_dir=runs)
perceptrons

# %% [markdown] lang="en"
# ## VGG16
#
# This is the cell that took 35 minutes for 6 epochs. The network now runs once over each image. Without a GPU that
# still takes a while (5 to 13 images a second on two CPU cores, by processor), but it is done once: run the cell again
# and nothing is computed.

# %% [markdown] lang="pt"
# ## VGG16
#
# Esta é a célula que levou 35 minutos para 6 épocas. Agora a rede processa cada imagem uma única vez. Sem GPU isso
# ainda demora (de 5 a 13 imagens por segundo em dois núcleos de CPU,
# conforme o processador), mas só acontece uma vez: execute a célula de
# novo e nada é calculado.

# %%
vgg16 = featcache.extract(images, "vgg16", weights=weights["vgg16"], **places)
vgg16

# %% [markdown] lang="en"
# The head: 25,088 features, two hidden layers of 128 and 64, trained by Adam. **Early stopping** is on: after five
# epochs without a better loss on val, training stops, and the best epoch is kept. This is how the notebook decided too.

# %% [markdown] lang="pt"
# A cabeça: 25.088 features, duas camadas ocultas de 128 e 64, treinadas com Adam. A **parada antecipada** (*early
# stopping*) está ligada: depois de cinco épocas sem melhora da perda em val, o treino para, e a melhor época é
# guardada. O notebook decidia da mesma forma.

# %%
head = {"head": "mlp:128,64", "activation": "leaky_relu", "standardize": False, "val_cut": "random"}
run = featcache.train_head(vgg16, runs_dir=runs, **head)
run

# %% [markdown] lang="en"
# ## Inception v3
#
# This experiment was stopped by hand after 22 epochs and more than an hour.

# %% [markdown] lang="pt"
# ## Inception v3
#
# Este experimento foi interrompido à mão depois de 22 épocas e mais de uma hora.

# %%
inception = featcache.extract(images, "inception_v3", weights=weights["inception_v3"], **places)
networks = {
    name: sweep_recipes(cache, [recipe(name)], seeds=seeds, runs_dir=runs)
    for name, cache in {"vgg16": vgg16, "inception_v3": inception}.items()
}
networks["inception_v3"]

# %% [markdown] lang="en"
# ## Beside the notebook's numbers
#
# The notebook printed the accuracy of the last epoch, on the images that are called val here. `last` is that number,
# the mean over the seeds; `test` is measured on the 10,000 images that nothing was chosen on, and is the number to
# quote. A recipe *agrees* if `last` is within 1.5 points of the notebook. With fewer images, or other weights, the two
# cannot be compared, and the last column says why.

# %% [markdown] lang="pt"
# ## Ao lado dos números do notebook
#
# O notebook mostrava a acurácia da última época, nas imagens que aqui se chamam val. `last` é esse número, em média
# sobre as sementes; `test` é medido nas 10.000 imagens que não serviram para nenhuma escolha, e é o número a citar. Uma
# receita *concorda* (*agrees*) se `last` está a no máximo 1,5 ponto do notebook. Com menos imagens, ou com outros
# pesos, os dois não podem ser comparados, e a última coluna diz por quê.

# %%
results = [
    *reproductions(perceptrons, mlps, pixels),
    *reproductions(networks["vgg16"], [recipe("vgg16")], vgg16),
    *reproductions(networks["inception_v3"], [recipe("inception_v3")], inception),
]
print(f"{'recipe':14}{'last':>8}{'notebook':>10}{'test':>8}{'epochs':>8}{'seconds':>9}  agrees")
for row in results:
    answer = {True: "yes", False: "no", None: "; ".join(row.doubts)}[row.agrees]
    print(
        f"{row.recipe.name:14}{row.last.accuracy:>8.1%}{row.recipe.notebook.accuracy:>10.1%}"
        f"{row.test.accuracy:>8.1%}{row.epochs:>8.1f}{row.seconds:>9.1f}  {answer}"
    )

# %% [markdown] lang="en"
# ## What the stored features add
#
# **Another question takes seconds.** Which head is best? Five heads on the same features. Each row has a
# 95 % interval: heads whose intervals overlap cannot be told apart on these images.

# %% [markdown] lang="pt"
# ## O que as features guardadas permitem
#
# **Outra pergunta leva segundos.** Qual cabeça é a melhor? Cinco cabeças sobre as mesmas features. Cada linha tem
# um intervalo de 95 %: cabeças cujos intervalos se sobrepõem não podem ser distinguidas com estas imagens.

# %%
question = {"head": ["linear", "mlp:64", "mlp:128,64", "ridge", "centroid"]}
heads = featcache.sweep(vgg16, grid=question, max_epochs=10, runs_dir=runs)
heads

# %% [markdown] lang="en"
# **A report that you can pass on**: one HTML file with the comparison, the learning curves, the confusion matrix, the
# mistakes and a map of the features.

# %% [markdown] lang="pt"
# **Um relatório que você pode compartilhar**: um único arquivo HTML com a comparação, as curvas de aprendizado, a
# matriz de confusão, os erros e um mapa das features.

# %%
run.report("report.html", data_dir=data)

# %% [markdown] lang="en"
# **An audit of the images**: the same picture in train and test, labels that the features contradict, images that are
# like no class.

# %% [markdown] lang="pt"
# **Uma auditoria das imagens**: a mesma imagem em treino e teste, rótulos que as features contradizem, imagens que não
# se parecem com nenhuma classe.

# %%
from featcache.analysis import audit_cache

with featcache.open_images(images, datasets_dir=data / "datasets") as source:
    audit = audit_cache(vgg16, source=source)
audit

# %% [markdown] lang="en"
# **Several questions of the same features.** A table adds another label to each image; no feature is computed again.
# Here: is it an animal or a machine?

# %% [markdown] lang="pt"
# **Várias perguntas para as mesmas features.** Uma tabela acrescenta outro rótulo a cada imagem; nenhuma feature é
# calculada de novo. Aqui: é um animal ou uma máquina?

# %%
import csv

machines = {"airplane", "automobile", "ship", "truck"}
with Path("kinds.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["id", "kind"])
    for split in vgg16:
        names = vgg16[split].target("label").names
        for sample, label in zip(vgg16[split].ids, vgg16[split].labels, strict=True):
            table.writerow([sample, "machine" if names[label] in machines else "animal"])

featcache.label(vgg16, "kinds.csv", data_dir=data)
vgg16 = featcache.FeatureCache.open(vgg16.path)
featcache.train_head(vgg16, "ridge", target="kind", runs_dir=runs)

# %% [markdown] lang="en"
# ## Next
#
# `featcache.predict(run, "photo.jpg")` classifies new images, and `featcache export` writes network and head into one
# ONNX file. The tutorial and the how-tos are in the documentation.

# %% [markdown] lang="pt"
# ## E agora
#
# `featcache.predict(run, "foto.jpg")` classifica imagens novas, e `featcache export` grava a rede e a cabeça em um
# único arquivo ONNX. O tutorial e os guias estão na documentação (em inglês).
