# %% tags=["exercise-1"]
# the sum runs over features: this is the token gate
class ChannelQKAttention(HandMadeTokenQK):
    pass


# %% tags=["exercise-1"]
# the gate masks Q instead of K
class ChannelQKAttention(HandMadeTokenQK):
    def forward(self, x):
        qk = norm_tokens(self.bn, self.qkv(x))
        q, k = qk.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.sum(-2, keepdim=True))
        return self.proj((gate * q).transpose(2, 3).flatten(3))


# %% tags=["exercise-1"]
# V is still there: SDSA with another sum
class ChannelQKAttention(SpikingSelfAttention):
    def forward(self, x):
        qkv = norm_tokens(self.bn, self.qkv(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.sum(-2, keepdim=True))
        return self.proj((gate * k).transpose(2, 3).flatten(3))


# %% tags=["exercise-1"]
# the heads are not put side by side again
class ChannelQKAttention(HandMadeTokenQK):
    def forward(self, x):
        qk = norm_tokens(self.bn, self.qkv(x))
        q, k = qk.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.sum(-2, keepdim=True))
        return self.proj((gate * k).reshape(x.shape))


# %% tags=["exercise-1"]
# the mean instead of the sum: one spike no longer opens the gate
class ChannelQKAttention(HandMadeTokenQK):
    def forward(self, x):
        qk = norm_tokens(self.bn, self.qkv(x))
        q, k = qk.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.mean(-2, keepdim=True))
        return self.proj((gate * k).transpose(2, 3).flatten(3))


# %% tags=["exercise-2"]
# the mask is forgotten
def channel_qk_savings(tokens, dim, heads):
    core = tokens * dim
    ssa = 2 * tokens * dim * min(tokens, dim // heads) + 12 * tokens * dim**2
    return core, 1 - (core + 11 * tokens * dim**2) / ssa


# %% tags=["exercise-2"]
# the matrix of V is still counted
def channel_qk_savings(tokens, dim, heads):
    core = 2 * tokens * dim
    linear = 12 * tokens * dim**2
    ssa = 2 * tokens * dim * min(tokens, dim // heads) + linear
    return core, 1 - (core + linear) / ssa


# %% tags=["exercise-2"]
# SSA always in the order Q(K^TV)
def channel_qk_savings(tokens, dim, heads):
    core = 2 * tokens * dim
    ssa = 2 * tokens * dim * (dim // heads) + 12 * tokens * dim**2
    return core, 1 - (core + 11 * tokens * dim**2) / ssa


# %% tags=["exercise-2"]
# the share that is left, not the share that is saved
def channel_qk_savings(tokens, dim, heads):
    core = 2 * tokens * dim
    ssa = 2 * tokens * dim * min(tokens, dim // heads) + 12 * tokens * dim**2
    return core, (core + 11 * tokens * dim**2) / ssa


# %% tags=["exercise-3"]
# negative inputs and halves are missed: only the largest value is looked at
@torch.no_grad()
def not_binary(model, images):
    inputs = inputs_of_layers(model, images)
    linear = {"mlp.hidden", "mlp.out", "attn.proj"}
    return sorted(
        name + ".linear" * any(name.endswith(end) for end in linear) for name, x in inputs.items() if x.max() > 1
    )


# %% tags=["exercise-3"]
# whole numbers are taken for spikes
def not_binary(model, images):
    found, hooks = set(), []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in ("sps.0.conv", "head"):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, args, name=name: found.add(name) if (args[0] != args[0].round()).any() else None
                )
            )
    model(images)
    for hook in hooks:
        hook.remove()
    return sorted(found)


# %% tags=["exercise-3"]
# the first convolution and the head are not left out
def not_binary(model, images):
    found, hooks = set(), []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, args, name=name: found.add(name) if ((args[0] != 0) & (args[0] != 1)).any() else None
                )
            )
    model(images)
    for hook in hooks:
        hook.remove()
    return sorted(found)


# %% tags=["exercise-3"]
# right, but the hooks stay on the network
def not_binary(model, images):
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in ("sps.0.conv", "head"):
            module.register_forward_pre_hook(
                lambda m, args, name=name: found.add(name) if ((args[0] != 0) & (args[0] != 1)).any() else None
            )
    model(images)
    return sorted(found)
