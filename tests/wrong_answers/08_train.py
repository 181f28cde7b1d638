# %% tags=["exercise-1"]
# all silent layers are repaired at once, also those that only get no input
def revive(model, images):
    with torch.no_grad(), se.record(model.train()) as rec:
        model(images)
    silent = [r.name for r in rec.layers("spikes") if not r.spikes.any()]
    cured = [name for name in silent if hasattr(model.get_submodule(name), "bn")]
    for name in cured:
        torch.nn.init.ones_(model.get_submodule(name).bn.weight)
        torch.nn.init.zeros_(model.get_submodule(name).bn.bias)
    return cured


# %% tags=["exercise-1"]
# the first silent layer is repaired, and the network is not looked at again
def revive(model, images):
    with torch.no_grad(), se.record(model.train()) as rec:
        model(images)
    silent = [r.name for r in rec.layers("spikes") if not r.spikes.any()][:1]
    for name in silent:
        torch.nn.init.ones_(model.get_submodule(name).bn.weight)
        torch.nn.init.zeros_(model.get_submodule(name).bn.bias)
    return silent


# %% tags=["exercise-1"]
# evaluation mode, in which an untrained network is silent anyway
def revive(model, images):
    cured = []
    for _ in range(19):
        with torch.no_grad(), se.record(model.eval()) as rec:
            model(images)
        silent = [r.name for r in rec.layers("spikes") if not r.spikes.any()]
        silent = [name for name in silent if name not in cured]
        if not silent or not hasattr(model.get_submodule(silent[0]), "bn"):
            break
        torch.nn.init.ones_(model.get_submodule(silent[0]).bn.weight)
        torch.nn.init.zeros_(model.get_submodule(silent[0]).bn.bias)
        cured.append(silent[0])
    return cured


# %% tags=["exercise-1"]
# a small weight is taken for damage, without a look at the spikes
def revive(model, images):
    cured = []
    for name, module in model.named_modules():
        if name.endswith(".bn") and module.weight.abs().max() < 0.1:
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
            cured.append(name.removesuffix(".bn"))
    return cured


# %% tags=["exercise-2"]
# the cosine counts its progress from epoch 0, not from the end of the warm-up
def schedule(epoch, epochs, warmup, highest, lowest):
    if epoch < warmup:
        return lowest + (highest - lowest) * epoch / warmup
    progress = min(1.0, epoch / epochs)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["exercise-2"]
# after the last epoch the cosine rises again
def schedule(epoch, epochs, warmup, highest, lowest):
    if epoch < warmup:
        return lowest + (highest - lowest) * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["exercise-2"]
# the warm-up starts at 0, and the cosine ends there
def schedule(epoch, epochs, warmup, highest, lowest):
    if epoch < warmup:
        return highest * epoch / warmup
    progress = min(1.0, (epoch - warmup) / (epochs - warmup))
    return highest * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["exercise-2"]
# the warm-up is divided by its length, which may be 0
def schedule(epoch, epochs, warmup, highest, lowest):
    climb = min(1.0, epoch / warmup)
    progress = min(1.0, max(0.0, (epoch - warmup) / (epochs - warmup)))
    return lowest + (highest - lowest) * climb * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["exercise-3"]
# the optimizer starts anew, without its moments
def save(model, optimizer, step):
    return copy.deepcopy(model.state_dict()) | {"step": step}


def restore(model, optimizer, state):
    step = state.pop("step")
    model.load_state_dict(state)
    return step


# %% tags=["exercise-3"]
# the state shares its memory with the run that goes on
def save(model, optimizer, step):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


def restore(model, optimizer, state):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


# %% tags=["exercise-3"]
# parameters only: the running statistics of the batch norms are left out
def save(model, optimizer, step):
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"model": parameters, "optimizer": copy.deepcopy(optimizer.state_dict()), "step": step}


def restore(model, optimizer, state):
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


# %% tags=["exercise-3"]
# the position is not kept: the run begins with the first step again
def save(model, optimizer, step):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def restore(model, optimizer, state):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return 0
