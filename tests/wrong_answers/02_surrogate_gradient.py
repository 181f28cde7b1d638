# %% [markdown]
# Wrong answers to the exercises of chapter 02; the checks must reject every one of them.


# %% tags=["exercise-1"]
# A bias alone makes every neuron fire, whatever the input: no information is left.
@torch.no_grad()
def revive(linear, inputs):
    linear.weight.zero_()
    linear.bias.fill_(1.2)


# %% tags=["exercise-1"]
# Draws new weights: the neurons fire, but prefer other inputs than before.
@torch.no_grad()
def revive(linear, inputs):
    torch.manual_seed(3)
    linear.weight.normal_()
    current = linear(inputs)
    mean, deviation = current.mean((0, 1)), current.std((0, 1))
    linear.weight /= deviation[:, None]
    linear.bias.copy_((linear.bias - mean) / deviation + 0.5)


# %% tags=["exercise-1"]
# Shifts each mean to the threshold, but the inputs hardly matter.
@torch.no_grad()
def revive(linear, inputs):
    linear.bias += 1.2 - linear(inputs).mean((0, 1))


# %% tags=["exercise-1"]
# One shift and one scale for all neurons.
@torch.no_grad()
def revive(linear, inputs):
    current = linear(inputs)
    linear.weight *= 10
    linear.bias.copy_(linear.bias * 10 - 10 * current.mean())


# %% tags=["exercise-1"]
# Normalizes the current, but forgets that the bias is scaled too.
@torch.no_grad()
def revive(linear, inputs):
    current = linear(inputs)
    linear.weight /= current.std((0, 1))[:, None]
    linear.bias -= current.mean((0, 1))


# %% tags=["exercise-1"]
# Aims so high that the neurons fire nearly always.
@torch.no_grad()
def revive(linear, inputs):
    current = linear(inputs)
    mean, deviation = current.mean((0, 1)), current.std((0, 1))
    linear.weight /= deviation[:, None]
    linear.bias.copy_((linear.bias - mean) / deviation + 3.0)


# %% tags=["exercise-1"]
# Turns the weights around: the neurons prefer what they disliked.
@torch.no_grad()
def revive(linear, inputs):
    current = linear(inputs)
    mean, deviation = current.mean((0, 1)), current.std((0, 1))
    linear.weight /= -deviation[:, None]
    linear.bias.copy_((mean - linear.bias) / deviation + 0.5)


# %% tags=["exercise-2"]
# Treats the reset as a constant in both cases.
def reset_slope(h, spike, detach):
    return 1 - spike


# %% tags=["exercise-2"]
# Forgets the factor H of the product rule.
def reset_slope(h, spike, detach):
    return 1 - spike if detach else 1 - spike - surrogate(h)


# %% tags=["exercise-2"]
# Has the sign of the second term wrong.
def reset_slope(h, spike, detach):
    return 1 - spike if detach else 1 - spike + h * surrogate(h)


# %% tags=["exercise-2"]
# Confuses the two cases.
def reset_slope(h, spike, detach):
    return 1 - spike - h * surrogate(h) if detach else 1 - spike


# %% tags=["exercise-2"]
# Lets the gradient through only where the neuron fired.
def reset_slope(h, spike, detach):
    return spike if detach else spike - h * surrogate(h)


# %% tags=["exercise-3"]
# The alpha of the paper.
best_alpha = 4

# %% tags=["exercise-3"]
# Wide enough, but not the largest.
best_alpha = 0.25

# %% tags=["exercise-3"]
# Not a power of two.
best_alpha = 1.5

# %% tags=["exercise-3"]
# Steeper than the paper's: the other way round.
best_alpha = 16
