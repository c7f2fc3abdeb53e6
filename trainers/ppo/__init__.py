"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) of language models, as reinforcement learning
from human feedback uses it (Ziegler et al. 2019, arXiv:1909.08593; details after Huang et al. 2024, arXiv:2403.17031).

estimates   what a completion's tokens were worth: masks, rewards, advantages
losses      what policy and values are moved by
control     how much straying from the reference costs
config      the options
policy      a language model with a value head
rollout     completions with all that is known of them, and their share for a micro-batch
judges      what completions are worth by the run's rewards
notes       what is logged
trainer     the training: rollouts, and minibatch epochs over each
"""
