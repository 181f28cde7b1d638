# %% [markdown]
# Wrong answers to the exercises of chapter 12; the checks must reject every one of them.

# %% tags=["exercise-1"]
# Takes the next power of two as the number of parts: more parts than needed.
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    share = global_batch // gpus
    parts = 1
    while share / parts > fits:
        parts *= 2
    lr = recipe.lr * math.sqrt(global_batch / recipe.lr_batch_size)
    return {"per_gpu": share, "parts": parts, "steps": images // global_batch, "lr": lr}


# %% tags=["exercise-1"]
# Rounds the number of parts up, and the parts are then not equal.
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    share = global_batch // gpus
    lr = recipe.lr * math.sqrt(global_batch / recipe.lr_batch_size)
    return {"per_gpu": share, "parts": -(-share // fits), "steps": images // global_batch, "lr": lr}


# %% tags=["exercise-1"]
# Scales the learning rate linearly, as for plain SGD.
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    share = global_batch // gpus
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= fits)
    lr = recipe.lr * global_batch / recipe.lr_batch_size
    return {"per_gpu": share, "parts": parts, "steps": images // global_batch, "lr": lr}


# %% tags=["exercise-1"]
# Counts a step for every part of a batch.
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    share = global_batch // gpus
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= fits)
    lr = recipe.lr * math.sqrt(global_batch / recipe.lr_batch_size)
    return {"per_gpu": share, "parts": parts, "steps": images // (global_batch // parts), "lr": lr}


# %% tags=["exercise-1"]
# Writes 192, the batch of the ImageNet recipe, for the batch that the rate is meant for.
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    share = global_batch // gpus
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= fits)
    lr = recipe.lr * math.sqrt(global_batch / 192)
    return {"per_gpu": share, "parts": parts, "steps": images // global_batch, "lr": lr}


# %% tags=["exercise-2"]
# Forgets --dry-run: this would start to train.
arguments = "--dataset imagenet --model imagenet-8-384 --time-steps 1 --batch-size 1024 --grad-accum-steps 32".split()

# %% tags=["exercise-2"]
# Leaves T as the preset has it.
arguments = "--dataset imagenet --model imagenet-8-384 --batch-size 1024 --grad-accum-steps 32 --dry-run".split()

# %% tags=["exercise-2"]
# Takes --batch-size for the size of a part.
arguments = ["--dataset", "imagenet", "--model", "imagenet-8-384", "--time-steps", "1", "--dry-run"]
arguments += ["--batch-size", "32", "--grad-accum-steps", "32"]

# %% tags=["exercise-2"]
# Scales the learning rate by hand, though the recipe does it.
arguments = ["--dataset", "imagenet", "--model", "imagenet-8-384", "--time-steps", "1", "--dry-run"]
arguments += ["--batch-size", "1024", "--grad-accum-steps", "32", "--lr", "1.15e-3"]


# %% tags=["exercise-3"]
# Takes the mean of the parts' means: images of small parts count more.
def gradient_in_parts(model, x, y, parts):
    model.zero_grad()
    for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        (F.cross_entropy(model(a), b) / parts).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["exercise-3"]
# Adds the parts' gradients and does not divide.
def gradient_in_parts(model, x, y, parts):
    model.zero_grad()
    for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        F.cross_entropy(model(a), b).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["exercise-3"]
# Keeps the gradients that were there before.
def gradient_in_parts(model, x, y, parts):
    for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        (F.cross_entropy(model(a), b) * len(b) / len(y)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["exercise-3"]
# Computes the whole batch at once, which does not fit.
def gradient_in_parts(model, x, y, parts):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["exercise-3"]
# Clears the gradients for every part: only the last one is left.
def gradient_in_parts(model, x, y, parts):
    for a, b in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        model.zero_grad()
        (F.cross_entropy(model(a), b) * len(b) / len(y)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])
