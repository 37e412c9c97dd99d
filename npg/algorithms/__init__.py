"""The methods, one file each."""

from .a2c import A2C as A2C
from .actor_critic_lambda import ActorCriticLambda as ActorCriticLambda
from .all_actions import AllActions as AllActions
from .average_reward_actor_critic import AverageRewardActorCritic as AverageRewardActorCritic
from .base import Agent as Agent
from .batch_actor_critic import BatchActorCritic as BatchActorCritic
from .copdac_gq import COPDACGQ as COPDACGQ
from .copdac_q import COPDACQ as COPDACQ
from .dpg_sarsa import DPGSarsa as DPGSarsa
from .dual_descent import DualDescent as DualDescent
from .episodic_natural_actor_critic import EpisodicNaturalActorCritic as EpisodicNaturalActorCritic
from .natural_actor_critic import NaturalActorCritic as NaturalActorCritic
from .npg import NPG as NPG
from .off_pac import OffPAC as OffPAC
from .off_policy_reinforce import OffPolicyReinforce as OffPolicyReinforce
from .one_step_actor_critic import OneStepActorCritic as OneStepActorCritic
from .ppo_clip import PPOClip as PPOClip
from .ppo_penalty import PPOPenalty as PPOPenalty
from .reinforce import Reinforce as Reinforce
from .replay_actor_critic import ReplayActorCritic as ReplayActorCritic
from .trpo import TRPO as TRPO

_METHODS: tuple[type[Agent], ...] = (
    Reinforce,
    AllActions,
    OneStepActorCritic,
    ActorCriticLambda,
    BatchActorCritic,
    A2C,
    AverageRewardActorCritic,
    NPG,
    NaturalActorCritic,
    EpisodicNaturalActorCritic,
    TRPO,
    PPOClip,
    PPOPenalty,
    DualDescent,
    OffPAC,
    ReplayActorCritic,
    OffPolicyReinforce,
    DPGSarsa,
    COPDACQ,
    COPDACGQ,
)

ALGORITHMS: dict[str, type[Agent]] = {cls.name(): cls for cls in _METHODS}
"""The methods by name, that of their module."""
