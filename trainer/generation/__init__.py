"""Pictures out: the sampler, pictures as files, whole training folders."""
