"""Synthetic cells with known effects."""

import numpy as np

from reasonjax.arena.results import Cell

TOKENS = {
    'sft': (0.0, 2.0),
    'masked_thought': (0.0, 2.2),
    'rft': (3.0, 2.5),
    'grpo': (9.0, 6.0),
    'dpo': (2.5, 4.0),
}


def cell(
    recipe,
    task,
    seed,
    skill,
    *,
    problems=200,
    start=0.3,
    seed_sd=0.02,
    samples=8,
    other=(),
    forget=0.05,
    length=60.0,
    ood_drop=0.15,
    points=9,
):
    """A finished cell whose accuracy is about `skill`; the problems of a task are as hard for every
    recipe and seed."""
    name = sum(map(ord, task))
    own = np.random.default_rng([name, seed, sum(map(ord, recipe))])
    skill = skill + seed_sd * own.normal()

    def outcomes(split, mean, draw):
        hardness = np.random.default_rng([name, sum(map(ord, split))]).permutation(
            np.linspace(-0.35, 0.35, problems)
        )
        chance = np.clip(
            np.clip(mean, 0.02, 0.98) + hardness * 4 * np.clip(mean * (1 - mean), 0.02, 0.25), 0, 1
        )
        return {
            'greedy': [float(x) for x in draw.random(problems) < chance],
            'sampled': (draw.binomial(samples, chance) / samples).tolist(),
        }

    shared = np.random.default_rng([name, seed])  # the warm start does not know the recipe
    splits = {'test': skill, 'ood': skill - ood_drop} | {
        f'other:{o}': 0.5 - forget * (1 + 0.3 * own.normal()) for o in other
    }
    starts = {'test': start, 'ood': start / 2} | {f'other:{o}': 0.5 for o in other}
    generated, trained = (
        1e6 * tokens * (1 + 0.05 * own.normal()) for tokens in TOKENS.get(recipe, (1.0, 1.0))
    )
    curve = []
    for index, share in enumerate(np.linspace(0, 1, points)):
        reached = start + (skill - start) * (1 - np.exp(-4 * share)) / (1 - np.exp(-4))
        curve.append(
            {
                'step': 10 * index,
                'trained_tokens': trained * share,
                'generated_tokens': generated * share,
                'flops': 1e9 * trained * share,
                'seconds': 100 * share,
                'accuracy': float(np.clip(reached + 0.012 * own.normal(), 0, 1)),
                'length': 40 + (length - 40) * share + own.normal(),
            }
        )
    cost = {
        'generated_tokens': generated,
        'trained_tokens': trained,
        'flops': 6e6 * (trained * 3 + generated),
        'seconds': 60 * (trained + 4 * generated) / 1e6,
        'peak_bytes': 1.5e9 + 1e8 * own.random(),
    }
    correct = {split: outcomes(split, mean, own) for split, mean in splits.items()}
    before = {split: outcomes(split, mean, shared) for split, mean in starts.items()}
    return Cell(
        recipe,
        task,
        seed,
        'done',
        '',
        correct,
        before,
        {'test': length + own.normal(), 'ood': length + 5.0},
        curve,
        cost,
    )


def failed(recipe, task, seed, error='RuntimeError: the loss is not finite at step 12'):
    return Cell(recipe, task, seed, 'failed', error)


SKILLS = {'sft': 0.62, 'masked_thought': 0.63, 'rft': 0.74, 'grpo': 0.86, 'dpo': 0.48}
LENGTHS = {'sft': 60.0, 'masked_thought': 58.0, 'rft': 52.0, 'grpo': 95.0, 'dpo': 80.0}


def arena(tasks=('addition',), recipes=tuple(SKILLS), seeds=5, **knobs):
    """A whole comparison."""
    return [
        cell(
            recipe,
            task,
            seed,
            SKILLS[recipe] - 0.04 * index,
            length=LENGTHS[recipe],
            other=[o for o in tasks if o != task],
            forget={'grpo': 0.02}.get(recipe, 0.08),
            **knobs,
        )
        for index, task in enumerate(tasks)
        for recipe in recipes
        for seed in range(seeds)
    ]


TASKS = (
    'addition',
    'multiplication',
    'countdown',
    'sorting',
    'boolean_logic',
    'gsm8k',
    'linear_equations',
    'graph_paths',
)
