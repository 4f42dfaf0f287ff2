"""images + backbone -> cache.

The sentence is `run.extract(request)`: `plan` lists and hashes the images, `matching` finds out which cache is
meant, `pipeline` turns images into rows, `job` writes segments and publishes the cache. Images, backbones and cache
do not know each other; this room introduces them.
"""
