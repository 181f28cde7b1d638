# %% tags=["exercise-1"]
# T is not used: four steps are assumed
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e9 / (4.6 * 4 * 9 * channels / 8 * size**2)


# %% tags=["exercise-1"]
# the output channels of the convolution, D / 8, are returned in place of D
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e9 / (4.6 * T * 9 * channels * size**2)


# %% tags=["exercise-1"]
# a mJ is taken for 1e6 pJ
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e6 / (4.6 * T * 9 * channels / 8 * size**2)


# %% tags=["exercise-1"]
# three input channels are assumed, so event frames with two get another width
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e9 / (4.6 * T * 9 * 3 / 8 * size**2)


# %% tags=["exercise-1"]
# the image size is not used
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e9 / (4.6 * T * 9 * channels / 8 * 224**2)


# %% tags=["exercise-1"]
# the price of an addition in place of a multiplication
def width_behind(energy_mj, T=4, size=224, channels=3):
    return energy_mj * 1e9 / (0.9 * T * 9 * channels / 8 * size**2)


# %% tags=["exercise-1"]
# the answer to the question, whatever the network is
def width_behind(energy_mj, T=4, size=224, channels=3):
    return 512


# %% tags=["exercise-2"]
# the first convolution is counted four times whatever T is
def break_even_rate(report, T):
    first, *others, head = (cost.flops for cost in report.layers)
    return (4.6 * report.ann_flops - 4.6 * 4 * first) / (0.9 * (T * sum(others) + head))


# %% tags=["exercise-2"]
# the head is counted T times
def break_even_rate(report, T):
    first, *others = (cost.flops for cost in report.layers)
    return (4.6 * report.ann_flops - 4.6 * T * first) / (0.9 * T * sum(others))


# %% tags=["exercise-2"]
# the network without spikes is charged T times, too
def break_even_rate(report, T):
    first, *others, head = (cost.flops for cost in report.layers)
    return (4.6 * T * report.ann_flops - 4.6 * T * first) / (0.9 * (T * sum(others) + head))


# %% tags=["exercise-2"]
# the first convolution is forgotten: only the prices and T are left
def break_even_rate(report, T):
    return 4.6 / (0.9 * T)


# %% tags=["exercise-2"]
# the first convolution is among the layers with rate r, too
def break_even_rate(report, T):
    first = report.layers[0].flops
    return (4.6 * report.ann_flops - 4.6 * T * first) / (0.9 * T * report.flops)


# %% tags=["exercise-2"]
# a rate cannot exceed 1, so it is cut there
def break_even_rate(report, T):
    first, *others, head = (cost.flops for cost in report.layers)
    return min(1.0, (4.6 * report.ann_flops - 4.6 * T * first) / (0.9 * (T * sum(others) + head)))


# %% tags=["exercise-2"]
# attention is taken in the order of the spiking network, so the network without spikes gets fewer operations
def break_even_rate(report, T):
    first, *others, head = (cost.flops for cost in report.layers)
    return (4.6 * report.flops - 4.6 * T * first) / (0.9 * (T * sum(others) + head))


# %% tags=["exercise-3"]
# only the price by value is divided by the number of images
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() * fan_out
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * nonzero}


# %% tags=["exercise-3"]
# divided by T as well, as if one step were asked for
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1] / x.shape[0]
    total = x.double().sum().item() * fan_out / x.shape[1] / x.shape[0]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * nonzero}


# %% tags=["exercise-3"]
# a multiplier is charged for zeros, too
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * x[:, 0].numel() * fan_out}


# %% tags=["exercise-3"]
# only values of 1 are counted as spikes
def residual_energy(x, fan_out):
    ones = (x == 1).double().sum().item() * fan_out / x.shape[1]
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {"as spikes": 0.9 * ones, "by value": 0.9 * total, "multiplied": 4.6 * nonzero}


# %% tags=["exercise-3"]
# a value above 1 is taken for 2, whatever it is
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().clamp(max=2).sum().item() * fan_out / x.shape[1]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * nonzero}


# %% tags=["exercise-3"]
# the fan-out is forgotten: one weight a value
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() / x.shape[1]
    total = x.double().sum().item() / x.shape[1]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * nonzero}


# %% tags=["exercise-3"]
# multiplied by the value as well: n MACs
def residual_energy(x, fan_out):
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {"as spikes": 0.9 * nonzero, "by value": 0.9 * total, "multiplied": 4.6 * total}
