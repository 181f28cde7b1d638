# %% tags=["exercise-1"]
# a view to the wanted shape: features and tokens are mixed
def split_heads(x, heads):
    T, B, D, N = x.shape
    return x.view(T, B, heads, N, D // heads)


def join_heads(x):
    T, B, h, N, d = x.shape
    return x.reshape(T, B, h * d, N)


# %% tags=["exercise-1"]
# d comes before h: the features go to other heads
def split_heads(x, heads):
    return x.unflatten(2, (-1, heads)).permute(0, 1, 3, 4, 2)


def join_heads(x):
    return x.permute(0, 1, 4, 2, 3).flatten(2, 3)


# %% tags=["exercise-1"]
# features and tokens are not swapped: [T, B, h, d, N]
def split_heads(x, heads):
    return x.unflatten(2, (heads, -1))


def join_heads(x):
    return x.flatten(2, 3)


# %% tags=["exercise-1"]
# joins to [T, B, N, D], tokens before features
def split_heads(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(3, 4)


def join_heads(x):
    return x.transpose(2, 3).flatten(3)


# %% tags=["exercise-1"]
# joins by a reshape of the right size
def split_heads(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(3, 4)


def join_heads(x):
    T, B, h, N, d = x.shape
    return x.reshape(T, B, h * d, N)


# %% tags=["exercise-1"]
# works for two heads of width 4 only
def split_heads(x, heads):
    return x.unflatten(2, (2, 4)).transpose(3, 4)


def join_heads(x):
    return x.transpose(3, 4).flatten(2, 3)


# %% tags=["exercise-2"]
# adds the spikes of SSA: that is SEW
def membrane_attention(ssa, neuron, u):
    return u + ssa(neuron(u))


# %% tags=["exercise-2"]
# the stream goes into the matrix without a neuron
def membrane_attention(ssa, neuron, u):
    y = ssa.qkv(u)
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    current = ssa.proj.linear(spikes.transpose(2, 3).flatten(3))
    return u + ssa.proj.bn(current.flatten(0, 2)).view_as(current)


# %% tags=["exercise-2"]
# the shortcut adds the spikes of the stream, not the stream
def membrane_attention(ssa, neuron, u):
    s = neuron(u)
    y = ssa.qkv(s)
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    current = ssa.proj.linear(spikes.transpose(2, 3).flatten(3))
    return s + ssa.proj.bn(current.flatten(0, 2)).view_as(current)


# %% tags=["exercise-2"]
# nothing is added to: the shortcut is missing
def membrane_attention(ssa, neuron, u):
    y = ssa.qkv(neuron(u))
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    current = ssa.proj.linear(spikes.transpose(2, 3).flatten(3))
    return ssa.proj.bn(current.flatten(0, 2)).view_as(current)


# %% tags=["exercise-2"]
# the heads are joined without moving their axis back
def membrane_attention(ssa, neuron, u):
    y = ssa.qkv(neuron(u))
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    current = ssa.proj.linear(spikes.reshape(u.shape))
    return u + ssa.proj.bn(current.flatten(0, 2)).view_as(current)


# %% tags=["exercise-2"]
# the attention neuron is left out, and the projection reads integers
def membrane_attention(ssa, neuron, u):
    y = ssa.qkv(neuron(u))
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    mixed = ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v))
    current = ssa.proj.linear(mixed.transpose(2, 3).flatten(3))
    return u + ssa.proj.bn(current.flatten(0, 2)).view_as(current)


# %% tags=["exercise-2"]
# the batch norm of the projection is forgotten
def membrane_attention(ssa, neuron, u):
    y = ssa.qkv(neuron(u))
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    q, k, v = (p.unflatten(-1, (ssa.heads, -1)).transpose(2, 3) for p in y.chunk(3, -1))
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    return u + ssa.proj.linear(spikes.transpose(2, 3).flatten(3))


# %% tags=["exercise-3"]
# the position embedding's spike is forgotten
def largest_residual(depth):
    return 1 + 2 * depth


def saturate(model):
    for norm in model.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.constant_(norm.bias, 2.0)


# %% tags=["exercise-3"]
# a block is taken to add one spike
def largest_residual(depth):
    return 2 + depth


def saturate(model):
    for norm in model.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.constant_(norm.bias, 2.0)


# %% tags=["exercise-3"]
# a current equal to the threshold: the membrane takes up half of it
def largest_residual(depth):
    return 2 + 2 * depth


def saturate(model):
    for norm in model.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.constant_(norm.bias, 1.0)


# %% tags=["exercise-3"]
# the weights stay, so some currents are still below the threshold
def largest_residual(depth):
    return 2 + 2 * depth


def saturate(model):
    for norm in model.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.constant_(norm.bias, 2.0)


# %% tags=["exercise-3"]
# the batch norms of the convolutions are forgotten
def largest_residual(depth):
    return 2 + 2 * depth


def saturate(model):
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.constant_(norm.bias, 2.0)


# %% tags=["exercise-3"]
# lowers the thresholds instead of changing the batch norms
def largest_residual(depth):
    return 2 + 2 * depth


def saturate(model):
    for neuron in model.modules():
        if isinstance(neuron, se.LIF):
            neuron.threshold.fill_(-1000.0)


# %% tags=["exercise-3"]
# nothing is changed
def largest_residual(depth):
    return 2 + 2 * depth


def saturate(model):
    pass
