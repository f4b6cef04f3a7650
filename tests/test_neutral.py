"""A recipe whose method is switched off equals its parent: the same metrics and the same
parameters, bit for bit.

A config file may state how, in overrides as the command line has them:

    NEUTRAL = dict(neutral={'sft.corruption.rate': '0.0'}, parent={'sft.corruption.name': 'none'})

`neutral` switches the method off, `parent` makes the recipe its parent; with
`parent_config='configs/sft.py'` the parent is that file, to which `parent` is then applied. A
metric that only one of the two reports is left out; loss and gradient norm are always there. A
method may have parameters that its parent has not; the parent's must be there.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import pytest

from reasonjax import config as configs
from reasonjax import config_files
from reasonjax.smoke import shrink
from reasonjax.tracking import metrics
from reasonjax.training.kinds import KINDS
from reasonjax.training.run import run, trained
from reasonjax.weights.partition import path_name

ROOT = pathlib.Path(__file__).parent.parent
CLOCKED = ('step_time', 'tokens_per_second')
ALWAYS = ('stage', 'step', 'loss', 'grad_norm')  # in every record of either, or in neither
# What makes a run longer, and what needs rewards on tokens.
QUIET = dict(
    checkpoint_every=0,
    eval_every=0,
    keep_best='',
    on_device=False,
    iterations_per_call=1,
    reward_workers=0,
)


class Outcome(NamedTuple):
    """What a run left behind: its records without clocks, the data its stages made, its answers,
    and the parameters it ended with."""

    records: list[dict]
    datasets: dict[str, str]
    examples: list
    params: dict[str, np.ndarray]


def _all() -> list[str]:
    """Every config file that states NEUTRAL."""
    files = sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('configs/recipes/*.py')])
    return [
        str(path.relative_to(ROOT))
        for path in files
        if hasattr(config_files.execute(path), 'NEUTRAL')
    ]


def _stated(location: str) -> dict:
    return _checked(config_files.execute(ROOT / location).NEUTRAL)


def _checked(stated: dict) -> dict:
    assert set(stated) <= {'neutral', 'parent', 'parent_config'}, (
        f'NEUTRAL has unknown fields: {sorted(stated)}'
    )
    assert stated.get('neutral'), 'NEUTRAL: nothing switches the method off'
    assert 'parent' in stated or 'parent_config' in stated, 'NEUTRAL names no parent'
    same = 'parent_config' not in stated and stated['neutral'] == stated['parent']
    assert not same, 'NEUTRAL: the switched-off recipe and its parent are one'
    return stated


def _shrunk(
    load_config, location: str, overrides: dict[str, str], evaluating: bool
) -> ml_collections.ConfigDict:
    """A config of two steps a stage, with rewards that differ. Overrides have the last word."""
    pairs = list(overrides.items())
    c = shrink(load_config(location, pairs)).copy_and_resolve_references().unlock()
    c.evaluation.enabled = evaluating or any(c[name].kind == 'evaluate' for name in c.stages)
    for name in c.stages:
        stage = c[name]
        stage.update({key: value for key, value in QUIET.items() if key in stage})
        if 'rewards' in stage:
            stage.rewards.uneven = dict(name='toys.uneven')
    for key, text in pairs:
        if not key.endswith('.name'):
            configs.override(c, key, text)
    return configs.complete(c)


def _outcome(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Outcome:
    summary = run(config, workdir)
    records = metrics.read(workdir / 'metrics.jsonl')
    for name in config.stages:
        if KINDS[config[name].kind].trains:
            norms = [
                record['grad_norm']
                for record in records
                if record['stage'] == name and 'grad_norm' in record
            ]
            assert any(norm > 0 for norm in norms), (
                f'stage {name} learns nothing, so that nothing is compared'
            )
    assert records
    saved = any(KINDS[config[name].kind].saves for name in config.stages)
    params = trained(workdir)[1] if saved else {}
    return Outcome(
        [
            {k: v for k, v in record.items() if k not in CLOCKED and not k.startswith('time/')}
            for record in records
        ],
        {
            path.parent.name: path.read_text()
            for path in sorted(workdir.glob('stages/*/dataset.jsonl'))
        },
        json.loads(json.dumps([stage.get('examples') for stage in summary['stages']])),
        {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)},
    )


def _differences(ours: Outcome, parents: Outcome) -> list[str]:
    """What the two have both but not equal, and what of the parent's parameters is missing in
    ours."""
    found = []
    if len(ours.records) != len(parents.records):
        found.append(f'{len(ours.records)} records, the parent has {len(parents.records)}')
    for mine, theirs in zip(ours.records, parents.records):
        where = f'{theirs["stage"]} step {theirs["step"]}'
        for name in sorted({*ALWAYS} & {*mine, *theirs} | {*mine} & {*theirs}):
            ours_is, theirs_is = mine.get(name, 'missing'), theirs.get(name, 'missing')
            if ours_is != theirs_is:
                found.append(f"{where}: {name} is {ours_is}, the parent's is {theirs_is}")
    for name in ('datasets', 'examples'):
        if getattr(ours, name) != getattr(parents, name):
            found.append(f'{name} differ')
    for name, theirs in parents.params.items():
        if name not in ours.params:
            found.append(f'parameter {name} is missing')
        elif (
            ours.params[name].dtype != theirs.dtype
            or ours.params[name].tobytes() != theirs.tobytes()
        ):
            found.append(f'parameter {name} differs')
    return found


@pytest.fixture(scope='module')
def outcomes():
    """Outcomes by their config: many recipes have one parent."""
    return {}


@pytest.fixture
def differences(load_config, outcomes, tmp_path):
    """`differences(location, stated)`: between a recipe that is switched off and its parent."""

    def outcome(location, overrides, evaluating):
        config = _shrunk(load_config, location, overrides, evaluating)
        key = configs.to_json(config)
        if key not in outcomes:
            outcomes[key] = _outcome(config, tmp_path / str(len(outcomes)))
        return outcomes[key]

    def compare(location, stated):
        neutral, parent = stated['neutral'], stated.get('parent', {})
        evaluating = any(key.startswith('evaluation.') for key in (*neutral, *parent))
        ours = outcome(location, neutral, evaluating)
        return _differences(
            ours, outcome(stated.get('parent_config', location), parent, evaluating)
        )

    return compare


@pytest.mark.parametrize('location', _all())
def test_switched_off_is_the_parent(location, differences):
    assert differences(location, _stated(location)) == []


def test_a_method_that_is_on_is_seen(differences):
    online = {'stages': "('grpo',)"}

    def found(**neutral):
        overrides = {key.replace('__', '.'): value for key, value in neutral.items()} | online
        return differences(
            'configs/grpo.py',
            dict(neutral=overrides, parent_config='configs/grpo.py', parent=online),
        )

    # as low as epsilon, which is what None means
    assert found(grpo__objective__epsilon_high='0.2') == []
    seen = found(grpo__advantage__scale_rewards='none')
    assert any('grad_norm is' in line for line in seen) and any(
        line.startswith('parameter') for line in seen
    )


@pytest.mark.parametrize(
    'stated, said',
    [
        (dict(parent={}), 'nothing switches'),
        (dict(neutral={'a': '0'}), 'no parent'),
        (dict(neutral={'a': '0'}, parent={'a': '0'}), 'are one'),
        (dict(neutral={'a': '0'}, parents={}), 'unknown fields'),
    ],
)
def test_a_statement_that_says_nothing_is_refused(stated, said):
    with pytest.raises(AssertionError, match=said):
        _checked(stated)


def test_what_a_parent_has_must_be_there():
    params = {'w': np.zeros(2, np.float32), 'v': np.ones(1, np.float32)}
    parents = Outcome([{'stage': 'sft', 'step': 1, 'loss': 0.5, 'entropy': 1.0}], {}, [], params)
    own = [{'stage': 'sft', 'step': 1, 'loss': 0.5, 'mask_rate': 0.0}]
    more = Outcome(own, {}, [], params | {'m': np.ones(1, np.float32)})
    assert _differences(more, parents) == []
    assert _differences(parents, more) == ['parameter m is missing']
    assert _differences(more._replace(records=[own[0] | {'entropy': 2.0}]), parents) == [
        "sft step 1: entropy is 2.0, the parent's is 1.0"
    ]
    lacking = more._replace(records=[{'stage': 'sft', 'step': 1}])
    assert _differences(lacking, parents) == ["sft step 1: loss is missing, the parent's is 0.5"]
    signed = parents._replace(params=params | {'w': -params['w']})
    assert _differences(signed, parents) == ['parameter w differs']  # -0 is not 0
    other = parents._replace(records=[], datasets={'collect': 'a row'})
    assert _differences(other, parents) == ['0 records, the parent has 1', 'datasets differ']
