"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) of language models, as in reinforcement
learning from human feedback (Ziegler et al. 2019, arXiv:1909.08593; details after Huang et al. 2024, arXiv:2403.17031).

    config     the options
    estimates  masks, rewards, advantages and the KL coefficient
    losses     the losses of policy and values
    policy     a language model with a value head
    rollout    completions with all that is known of them, and how rewards score them
    metrics    what is logged
    trainer    the training: rollouts, and minibatch epochs over each
"""
