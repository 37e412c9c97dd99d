"""The methods, one file each."""

from .a2c import A2C
from .actor_critic_lambda import ActorCriticLambda
from .all_actions import AllActions
from .average_reward_actor_critic import AverageRewardActorCritic
from .base import Agent
from .batch_actor_critic import BatchActorCritic
from .one_step_actor_critic import OneStepActorCritic
from .reinforce import Reinforce

ALGORITHMS: dict[str, type[Agent]] = {
    "reinforce": Reinforce,
    "all_actions": AllActions,
    "one_step_actor_critic": OneStepActorCritic,
    "actor_critic_lambda": ActorCriticLambda,
    "batch_actor_critic": BatchActorCritic,
    "a2c": A2C,
    "average_reward_actor_critic": AverageRewardActorCritic,
}

__all__ = [
    "A2C",
    "ALGORITHMS",
    "ActorCriticLambda",
    "Agent",
    "AllActions",
    "AverageRewardActorCritic",
    "BatchActorCritic",
    "OneStepActorCritic",
    "Reinforce",
]
