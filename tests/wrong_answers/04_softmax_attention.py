# %% tags=["exercise-1"]
# a formula in place of a measurement
def size(q, k, v):
    return len(q) ** 0.5


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# the scores are not divided by sqrt(d)
def size(q, k, v):
    return (q @ k.T @ v).square().mean().sqrt()


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# the standard deviation: the mean is subtracted first
def size(q, k, v):
    return (q @ k.T @ v / q.shape[-1] ** 0.5).std()


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# the softmax is still there
def size(q, k, v):
    return F.scaled_dot_product_attention(q, k, v).square().mean().sqrt()


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# the largest entry is no measure of all entries
def size(q, k, v):
    return (q @ k.T @ v / q.shape[-1] ** 0.5).abs().max()


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# d = 32 is written into the function
def size(q, k, v):
    return (q @ k.T @ v / 32**0.5).square().mean().sqrt()


power_real, power_spikes = 0.5, 1


# %% tags=["exercise-1"]
# spikes are taken to behave like real numbers of both signs
def size(q, k, v):
    return (q @ k.T @ v / q.shape[-1] ** 0.5).square().mean().sqrt()


power_real, power_spikes = 0.5, 0.5


# %% tags=["exercise-1"]
# the number of terms is taken for the size of their sum
def size(q, k, v):
    return (q @ k.T @ v / q.shape[-1] ** 0.5).square().mean().sqrt()


power_real, power_spikes = 1, 1


# %% tags=["exercise-1"]
# the exponents are not filled in
def size(q, k, v):
    return (q @ k.T @ v / q.shape[-1] ** 0.5).square().mean().sqrt()


power_real, power_spikes = None, None


# %% tags=["exercise-2"]
# shuffling is thought to change nothing
def of_shuffled(output, a, b):
    return output


# %% tags=["exercise-2"]
# the rows are ordered like the keys, not like the queries
def of_shuffled(output, a, b):
    return output[b]


# %% tags=["exercise-2"]
# both orders are applied
def of_shuffled(output, a, b):
    return output[a][b]


# %% tags=["exercise-2"]
# the inverse of the permutation
def of_shuffled(output, a, b):
    return output[a.argsort()]


# %% tags=["exercise-2"]
# attention of the output with itself: not what was asked for
def of_shuffled(output, a, b):
    return attention(output[a], output[b], output[b])


# %% tags=["exercise-3"]
# calls the softmax of PyTorch
def weights_at(scores, temperature):
    return torch.softmax(scores / temperature, -1)


# %% tags=["exercise-3"]
# calls the softmax as a method of the tensor
def weights_at(scores, temperature):
    return (scores / temperature).softmax(-1)


# %% tags=["exercise-3"]
# the logarithm of the softmax is a softmax too
def weights_at(scores, temperature):
    return F.log_softmax(scores / temperature, dim=-1).exp()


# %% tags=["exercise-3"]
# the exponential overflows at a low temperature
def weights_at(scores, temperature):
    e = (scores / temperature).exp()
    return e / e.sum(-1, keepdim=True)


# %% tags=["exercise-3"]
# the largest score of all rows is subtracted, so other rows become 0 / 0
def weights_at(scores, temperature):
    e = ((scores - scores.max()) / temperature).exp()
    return e / e.sum(-1, keepdim=True)


# %% tags=["exercise-3"]
# columns sum to one, not rows
def weights_at(scores, temperature):
    e = ((scores - scores.amax(0, keepdim=True)) / temperature).exp()
    return e / e.sum(0, keepdim=True)


# %% tags=["exercise-3"]
# multiplies by the temperature
def weights_at(scores, temperature):
    e = ((scores - scores.amax(-1, keepdim=True)) * temperature).exp()
    return e / e.sum(-1, keepdim=True)


# %% tags=["exercise-3"]
# the temperature is not used
def weights_at(scores, temperature):
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)
