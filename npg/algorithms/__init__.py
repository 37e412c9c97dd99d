"""The methods, one file each."""

from .a2c import A2C
from .actor_critic_lambda import ActorCriticLambda
from .all_actions import AllActions
from .average_reward_actor_critic import AverageRewardActorCritic
from .base import Agent
from .batch_actor_critic import BatchActorCritic
from .dual_descent import DualDescent
from .episodic_natural_actor_critic import EpisodicNaturalActorCritic
from .natural_actor_critic import NaturalActorCritic
from .npg import NPG
from .one_step_actor_critic import OneStepActorCritic
from .ppo_clip import PPOClip
from .ppo_penalty import PPOPenalty
from .reinforce import Reinforce
from .trpo import TRPO

ALGORITHMS: dict[str, type[Agent]] = {
    "reinforce": Reinforce,
    "all_actions": AllActions,
    "one_step_actor_critic": OneStepActorCritic,
    "actor_critic_lambda": ActorCriticLambda,
    "batch_actor_critic": BatchActorCritic,
    "a2c": A2C,
    "average_reward_actor_critic": AverageRewardActorCritic,
    "npg": NPG,
    "natural_actor_critic": NaturalActorCritic,
    "episodic_natural_actor_critic": EpisodicNaturalActorCritic,
    "trpo": TRPO,
    "ppo_clip": PPOClip,
    "ppo_penalty": PPOPenalty,
    "dual_descent": DualDescent,
}

__all__ = [
    "A2C",
    "ALGORITHMS",
    "NPG",
    "TRPO",
    "ActorCriticLambda",
    "Agent",
    "AllActions",
    "AverageRewardActorCritic",
    "BatchActorCritic",
    "DualDescent",
    "EpisodicNaturalActorCritic",
    "NaturalActorCritic",
    "OneStepActorCritic",
    "PPOClip",
    "PPOPenalty",
    "Reinforce",
]
