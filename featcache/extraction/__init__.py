"""images + backbone -> cache.

The entry point is `run.extract(request)`: `resolve` lists the images and completes the spec, `inventory` finds the rows
that exist already, `pipeline` turns images into rows, `segment_writer` writes segments, and `publish` makes them a
cache. The packages images, backbones and cache do not import each other; this package connects them.
"""
