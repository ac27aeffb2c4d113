"""Pictures made by a model: the sampler, picture files, and whole data sets to train on."""
