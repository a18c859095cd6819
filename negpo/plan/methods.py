"""What a method runs in one step: the cost column of ``negpo.methods.TABLE``."""

from negpo.errors import ConfigError
from negpo.methods import TABLE, StepCost

COSTS: dict[str, StepCost] = {name: method.cost for name, method in TABLE.items()}


def cost_of(method: str) -> StepCost:
    if method not in COSTS:
        raise ConfigError(f"method is {method!r}; choose one of {', '.join(COSTS)}")
    return COSTS[method]
