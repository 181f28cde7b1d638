# %% tags=["exercise-1"]
# counts the features that are 0 in both, and forgets those that are 1 in both
class AgreementAttention(se.ATTENTION["ssa"]):
    def phi(self, x):
        return 1 - x


# %% tags=["exercise-1"]
# appends a copy in place of the complement: counts common ones twice
class AgreementAttention(se.ATTENTION["ssa"]):
    def phi(self, x):
        return torch.cat([x, x], dim=-1)


# %% tags=["exercise-1"]
# appends the complement as tokens, not as features
class AgreementAttention(se.ATTENTION["ssa"]):
    def phi(self, x):
        return torch.cat([x, 1 - x], dim=-2)


# %% tags=["exercise-1"]
# bits as -1 and 1: agreements minus disagreements
class AgreementAttention(se.ATTENTION["ssa"]):
    def phi(self, x):
        return 2 * x - 1


# %% tags=["exercise-1"]
# the scale is forgotten
class AgreementAttention(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return q @ k.transpose(-2, -1) + (1 - q) @ (1 - k).transpose(-2, -1)


# %% tags=["exercise-1"]
# the scale of the paper is written into the class
class AgreementAttention(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return (q @ k.transpose(-2, -1) + (1 - q) @ (1 - k).transpose(-2, -1)) * 0.125


# %% tags=["exercise-1"]
# one product, and the width of a head as the constant 32
class AgreementAttention(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        ones = q.sum(-1, keepdim=True) + k.sum(-1).unsqueeze(-2)
        return (2 * q @ k.transpose(-2, -1) + 32 - ones) * self.scale


# %% tags=["exercise-1"]
# the mean over features in place of their number
class AgreementAttention(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return (q.unsqueeze(-2) == k.unsqueeze(-3)).float().mean(-1) * self.scale


# %% tags=["exercise-2"]
# counts the features that are 1 in both only: the mean of SSA
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return scale * tokens * width * rate_q * rate_k * rate_v


# %% tags=["exercise-2"]
# the rate of V is forgotten
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return scale * tokens * width * (rate_q * rate_k + (1 - rate_q) * (1 - rate_k))


# %% tags=["exercise-2"]
# scale is not used
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return 0.125 * tokens * width * (rate_q * rate_k + (1 - rate_q) * (1 - rate_k)) * rate_v


# %% tags=["exercise-2"]
# the scores' mean: no sum over tokens
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return scale * width * (rate_q * rate_k + (1 - rate_q) * (1 - rate_k)) * rate_v


# %% tags=["exercise-2"]
# takes 1 minus the difference of the rates for the probability of agreeing
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return scale * tokens * width * (1 - abs(rate_q - rate_k)) * rate_v


# %% tags=["exercise-2"]
# one token and one feature: no sums at all
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    return scale * (rate_q * rate_k + (1 - rate_q) * (1 - rate_k)) * rate_v


# %% tags=["exercise-3"]
# chooses on the test set
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: point[2])[0] if within else None


# %% tags=["exercise-3"]
# takes the most expensive point that the budget allows
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: point[3])[0] if within else None


# %% tags=["exercise-3"]
# a point exactly at the budget is left out
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] < budget]
    return max(within, key=lambda point: (point[1], -point[3]))[0] if within else None


# %% tags=["exercise-3"]
# of two equals the first in the list, or the larger T
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: (point[1], point[0]))[0] if within else None


# %% tags=["exercise-3"]
# the budget is not used
def choose_time_steps(points, budget):
    return max(points, key=lambda point: (point[1], -point[3]))[0]


# %% tags=["exercise-3"]
# returns the whole point
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: (point[1], -point[3])) if within else None


# %% tags=["exercise-3"]
# accuracy for each nJ: always the cheapest
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: point[1] / point[3])[0] if within else None


# %% tags=["exercise-3"]
# 0 where nothing is within the budget
def choose_time_steps(points, budget):
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: (point[1], -point[3]))[0] if within else 0
