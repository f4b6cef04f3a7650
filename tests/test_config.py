"""Configs: completion, overrides, functions by name, and every error text."""

import json
import pathlib
import textwrap

import ml_collections
import pytest

from reasonjax import config as configs
from reasonjax import config_files, config_names
from reasonjax.errors import UserError

OWN = """
def loss(score, batch, key, *, strength=0.5, kind='soft', limit=None, parts=(1, 2)):
    return strength

def needs(score, batch, key, *, strength=0.5, must):
    return must

def reward(prompts, completions, solution, *, bonus=0.1, **kwargs):
    return [bonus]

def pair(example, rng, *, keep=True):
    return [example]

constant = 3
"""

TREE = """
c = ml_collections.ConfigDict()
c.seed = 0
c.steps = 10
c.rate = 0.1
c.flag = True
c.text = 'plain'
c.betas = (0.9, 0.99)
c.free = None
c.double = c.get_ref('steps') * 2
c.train = dict(batch_size=4, data=dict(path='here', shuffle=c.get_ref('seed')))
c.objective = dict(name='own_functions.loss', strength=c.get_ref('rate'))
c.optimizer = dict(name='adamw', b2=0.98)
c.learning_rate = dict(name='cosine', peak=1e-3)
c.rewards = dict(first=dict(name='own_functions.reward'), second=dict(name='own_functions.reward', weight=2.0))
c.transforms = (dict(name='own_functions.pair'), dict(name='own_functions.pair', keep=False))
"""


@pytest.fixture(autouse=True)
def own_functions(tmp_path, monkeypatch):
    (tmp_path / 'own_functions.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def load(tmp_path):
    def run(*overrides, extra='', signature='', argument=''):
        body = textwrap.indent(f'{TREE}{extra}\nreturn c', '    ')
        path = tmp_path / 'config.py'
        path.write_text(f'import ml_collections\n\ndef get_config({signature}):\n{body}\n')
        return configs.load(f'{path}{argument}', [tuple(o.split('=', 1)) for o in overrides])

    return run


def refuses(load, *overrides, words, **options):
    with pytest.raises(UserError) as error:
        load(*overrides, **options)
    for word in words:
        assert word in str(error.value), f'{word!r} not in: {error.value}'


def test_completion_shows_every_knob(load):
    config = load()
    assert config.objective.to_dict() == {
        'name': 'own_functions.loss',
        'strength': 0.1,
        'kind': 'soft',
        'limit': None,
        'parts': (1, 2),
    }
    assert (
        config.optimizer.b2 == 0.98
        and config.optimizer.b1 == 0.9
        and config.optimizer.clip_norm == float('inf')
    )
    assert config.learning_rate.to_dict() == {
        'name': 'cosine',
        'peak': 1e-3,
        'warmup_steps': 0,
        'final_fraction': 0.0,
    }
    assert config.rewards.first.to_dict() == {
        'name': 'own_functions.reward',
        'bonus': 0.1,
        'weight': 1.0,
    }
    assert config.rewards.second.weight == 2.0
    assert [t.keep for t in config.transforms] == [True, False]
    assert config.is_locked


@pytest.mark.parametrize(
    'override, read, wanted',
    [
        ('steps=7', lambda c: c.steps, 7),
        ('rate=2', lambda c: c.rate, 2.0),
        ('rate=1e-4', lambda c: c.rate, 1e-4),
        ('optimizer.clip_norm=inf', lambda c: c.optimizer.clip_norm, float('inf')),
        ('flag=False', lambda c: c.flag, False),
        ('flag=true', lambda c: c.flag, True),
        ('text=5', lambda c: c.text, '5'),
        ('text=a=b', lambda c: c.text, 'a=b'),
        ('free=0.5', lambda c: c.free, 0.5),
        ('objective.limit=3', lambda c: c.objective.limit, 3),
        ('betas=(0.1, 0.2)', lambda c: c.betas, (0.1, 0.2)),
        ('betas[1]=0.5', lambda c: c.betas, (0.9, 0.5)),
        ('betas.1=0.5', lambda c: c.betas, (0.9, 0.5)),
        ('objective.parts[0]=8', lambda c: c.objective.parts, (8, 2)),
        ('objective.parts=4', lambda c: c.objective.parts, (4,)),
        ('optimizer.no_decay=embed', lambda c: c.optimizer.no_decay, ('embed',)),
        ('train.data.path=there', lambda c: c.train.data.path, 'there'),
        ('rewards.first.weight=3', lambda c: c.rewards.first.weight, 3.0),
        ('transforms[1].keep=true', lambda c: [t.keep for t in c.transforms], [True, True]),
    ],
)
def test_overrides(load, override, read, wanted):
    got = read(load(override))
    assert got == wanted and type(got) is type(wanted)


def test_references_follow_overrides(load):
    assert load('steps=4').double == 8
    config = load('seed=5', 'rate=3')
    assert config.train.data.shuffle == 5 and config.objective.strength == 3.0


def test_references_survive_another_name(load):
    config = load('objective.name=own_functions.loss', 'rate=3')
    assert config.objective.strength == 3.0


def test_references_survive_within_a_tuple(load):
    extra = "c.transforms = (dict(name='own_functions.pair', keep=c.get_ref('flag')),)"
    assert load('flag=false', extra=extra).transforms[0].keep is False


def test_a_new_name_brings_its_knobs(load):
    config = load('learning_rate.name=constant', 'learning_rate.warmup_steps=5')
    assert config.learning_rate.to_dict() == {'name': 'constant', 'peak': 1e-3, 'warmup_steps': 5}
    assert (
        load(
            'learning_rate.warmup_steps=5', 'learning_rate.name=constant'
        ).learning_rate.warmup_steps
        == 5
    )
    config = load('objective.name=clipped_policy_gradient', 'objective.epsilon=0.3')
    assert config.objective.epsilon == 0.3 and 'kind' not in config.objective
    config = load('rewards.second.name=own_functions.reward', 'rewards.second.bonus=1')
    assert config.rewards.second.to_dict() == {
        'name': 'own_functions.reward',
        'bonus': 1.0,
        'weight': 2.0,
    }
    assert load('transforms[0].name=own_functions.pair').transforms[0].keep is True


def test_a_new_name_may_need_a_knob(load):
    config = load('objective.name=own_functions.needs', 'objective.must=7')
    assert config.objective.must == 7 and config.objective.strength == 0.1
    refuses(
        load,
        'objective.name=own_functions.needs',
        words=['config.objective.must', 'needs this knob'],
    )


@pytest.mark.parametrize(
    'override, words',
    [
        ('stps=3', ['--config.stps', 'no key "stps"', 'Did you mean "steps"?', 'It has:', 'betas']),
        (
            'train.data.pth=x',
            [
                '--config.train.data.pth',
                'config.train.data has no key "pth"',
                'Did you mean "path"?',
            ],
        ),
        ('optimizer.b22=1', ['config.optimizer', 'Did you mean "b2"?', 'weight_decay']),
        ('steps=many', ['--config.steps=many', 'expected int (now 10)', 'got str']),
        ('steps=1.5', ['expected int', 'got float']),
        ('steps=true', ['expected int', 'got bool']),
        ('steps=none', ['--config.steps=none', 'expected int (now 10)']),
        ('steps=', ['--config.steps=', 'expected int']),
        ('rate=fast', ['--config.rate=fast', 'expected float (now 0.1)', 'got str']),
        ('flag=1', ['--config.flag=1', 'expected bool (now True)', 'got int']),
        ('betas[0]=x', ['--config.betas[0]=x', 'expected float', 'got str']),
        ('betas[2]=1', ['--config.betas[2]', 'config.betas has 2 entries']),
        ('betas=hello', ['--config.betas=hello', 'float', 'str']),
        ('train.data=3', ['--config.train.data', 'group of keys', 'path']),
        ('steps.more=3', ['--config.steps.more', 'config.steps is a value (10)']),
        ('transforms[0].kep=1', ['config.transforms[0] has no key "kep"', 'Did you mean "keep"?']),
        (
            'objective.name=nl',
            [
                'config.objective.name',
                'unknown objective "nl"',
                'Did you mean "nll"?',
                'clipped_policy',
            ],
        ),
        (
            'learning_rate.name=cosin',
            ['config.learning_rate.name', 'Did you mean "cosine"?', 'linear'],
        ),
        ('objective.name=own_functions.los', ['config.objective.name', 'own_functions', '"los"']),
        ('objective.name=own_functions.constant', ['config.objective.name', '"constant"']),
        (
            'objective.name=no_such_module.loss',
            ['config.objective.name', 'cannot import "no_such_module.loss"'],
        ),
        ('objective.name=.loss', ['config.objective.name', '.loss']),
    ],
)
def test_bad_overrides(load, override, words):
    refuses(load, override, words=words)


@pytest.mark.parametrize(
    'extra, words',
    [
        (
            "c.objective = dict(name='nlll')",
            ['config.objective.name', 'unknown objective "nlll"', 'Did you mean "nll"?'],
        ),
        (
            "c.optimizer = dict(name='adamw', weight_decy=1)",
            [
                'config.optimizer.weight_decy',
                'adamw has no such knob',
                'Did you mean "weight_decay"?',
                'clip_norm',
            ],
        ),
        (
            "c.learning_rate = dict(name='constant')",
            ['config.learning_rate.peak', 'needs this knob'],
        ),
        (
            "c.train.objective = dict(name='own_functions.needs')",
            ['config.train.objective.must', 'needs this knob'],
        ),
        ("c.objective = dict(nme='nll')", ['config.objective', '"name"']),
        (
            "c.transforms = (dict(name='own_functions.pair', kep=1),)",
            ['config.transforms[0].kep', 'Did you mean "keep"?'],
        ),
        (
            "c.transforms = ('own_functions.pair',)",
            ['config.transforms[0]', 'name', 'own_functions.pair'],
        ),
        (
            "c.rewards.third = dict(name='own_functions.rewrd')",
            ['config.rewards.third.name', '"rewrd"'],
        ),
        ("c.rewards.third = 'own_functions.reward'", ['config.rewards.third', 'name']),
    ],
)
def test_bad_nodes(load, extra, words):
    refuses(load, extra=extra, words=words)


def test_files(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'grpo.py').write_text('value = 1')
    with pytest.raises(
        UserError,
        match=r'no file configs/gpro.py. Did you mean "configs/grpo.py"\? Configs here: configs/grpo.py',
    ):
        configs.load('configs/gpro.py')
    with pytest.raises(UserError, match=r'configs/grpo.py: a config file defines get_config\(\)'):
        configs.load('configs/grpo.py')
    refuses(load, argument=':small', words=['config.py:small', 'takes no argument'])
    refuses(load, signature='size', words=['config.py', 'argument'])
    assert load(signature="size=''", extra='c.text = size', argument=':small').text == 'small'
    assert load(signature="size='none'", extra='c.text = size').text == 'none'


def test_names(tmp_path, monkeypatch):
    """A config is found by its name from anywhere; what the working directory has under that name
    goes first, recipes before configs."""
    monkeypatch.chdir(tmp_path)
    assert (
        configs.load('grpo').to_json()
        == configs.load(str(config_files.shipped() / 'grpo.py')).to_json()
    )
    assert configs.load('quickstart:worked_only').stages == ('fresh', 'sft')
    assert config_files.by_name('masked_thought').parent.name == 'recipes'
    assert {'grpo', 'hf', 'masked_thought'} <= set(config_files.names()) and config_files.by_name(
        ''
    ) is None
    for name in ('grp0', '../grpo', 'recipes/masked_thought', '.', '..'):
        with pytest.raises(
            UserError, match='--config: no file .*Configs here: none. By name: .*grpo'
        ):
            configs.load(name)
    with pytest.raises(UserError, match='no file configs/gpro.py. Did you mean "grpo"'):
        configs.load('configs/gpro.py')
    own = tmp_path / 'configs'
    (own / 'recipes').mkdir(parents=True)
    (own / 'grpo.py').write_text(
        'from configs import base\ndef get_config():\n    c = base.get_config()\n    c.seed = 7\n  '
        '  return c\n'
    )
    assert configs.load('grpo').seed == 7
    (own / 'recipes' / 'grpo.py').write_text((own / 'grpo.py').read_text().replace('7', '8'))
    assert configs.load('grpo').seed == 8 and config_files.names().count('grpo') == 1
    assert [path for path in config_files.recipes() if path.stem == 'grpo'] == [
        pathlib.Path('configs/recipes/grpo.py')
    ]


@pytest.mark.parametrize('ending', ['c.lock()', 'return c.lock()'])
def test_a_config_that_is_locked(load, ending):
    """Knobs that it leaves out are filled in like any other's."""
    assert load(extra=ending).objective.to_dict() == load().objective.to_dict()


def test_variants_are_checked_where_a_file_lists_them(tmp_path):
    (tmp_path / 'listed.py').write_text(
        "import ml_collections\nVARIANTS = ('', 'small')\n"
        "def get_config(size=''):\n    return ml_collections.ConfigDict({'text': size})\n"
    )
    assert configs.load(f'{tmp_path}/listed.py:small').text == 'small'
    with pytest.raises(UserError, match='listed.py:smal: no such variant. Did you mean "small"'):
        configs.load(f'{tmp_path}/listed.py:smal')


def test_configs_import_their_neighbours(tmp_path, monkeypatch):
    monkeypatch.chdir('/')
    root = pathlib.Path(configs.__file__).parent.parent
    (tmp_path / 'mine.py').write_text(
        'from configs import base\n\ndef get_config():\n    c = base.get_config()\n    '
        'c.train.steps = 7\n    return c\n'
    )
    assert configs.load(str(tmp_path / 'mine.py')).train.steps == 7
    assert configs.load(str(root / 'configs' / 'base.py')).train.steps > 7


def test_resolve_binds_knobs(load):
    config = load('objective.strength=4', 'objective.parts=(3,)')
    loss = configs.resolve(config.objective, 'objective')
    assert (
        loss.keywords == {'strength': 4.0, 'kind': 'soft', 'limit': None, 'parts': (3,)}
        and loss(None, None, None) == 4.0
    )
    reward = configs.resolve(config.rewards.second, 'rewards', 'rewards.second')
    assert reward.keywords == {'bonus': 0.1} and reward([], [], []) == [0.1]
    assert configs.resolve({'name': 'nll'}, 'objective').func.__name__ == 'nll'
    with pytest.raises(
        UserError,
        match=r'config.stage.objective.strenth: own_functions.loss has no such knob. Did you mean "strength"\?',
    ):
        configs.resolve(
            {'name': 'own_functions.loss', 'strenth': 1}, 'objective', 'stage.objective'
        )
    with pytest.raises(
        UserError, match='config.objective.must: own_functions.needs needs this knob'
    ):
        configs.resolve({'name': 'own_functions.needs'}, 'objective')


def test_every_slot_has_functions():
    import importlib

    for slot, modules in configs.SLOTS.items():
        found = {}
        for module in modules:
            found |= config_names.functions(importlib.import_module(module))
        assert found, slot
        for name, function in found.items():
            assert function.__doc__ and configs.find(name, slot, slot) is function


def test_json_round_trip_and_differences(load):
    config = load()
    text = configs.to_json(config)
    back = configs.from_json(text)
    assert configs.to_json(back) == text and configs.differences(back, config) == []
    assert (
        back.betas == (0.9, 0.99)
        and back.optimizer.clip_norm == float('inf')
        and back.transforms[1]['keep'] is False
    )
    assert configs.complete(back).objective.to_dict() == config.objective.to_dict()
    assert json.loads(text)['double'] == 20

    other = load('seed=1', 'betas[0]=0.5', 'objective.name=nll')
    assert configs.differences(config, other) == [
        'config.betas: (0.9, 0.99) -> (0.5, 0.99)',
        "config.objective.kind: 'soft' -> '(absent)'",
        "config.objective.limit: None -> '(absent)'",
        "config.objective.name: 'own_functions.loss' -> 'nll'",
        "config.objective.parts: (1, 2) -> '(absent)'",
        "config.objective.strength: 0.1 -> '(absent)'",
        'config.seed: 0 -> 1',
        'config.train.data.shuffle: 0 -> 1',
    ]


def test_split_arguments():
    rest, overrides = configs.split_arguments(
        [
            '--config',
            'x.py',
            '--config.a.b',
            '3',
            '--workdir',
            'w',
            '--config.c=',
            '--config.d=e=f',
            '--config.g',
            '-1',
            '--smoke',
        ]
    )
    assert rest == ['--config', 'x.py', '--workdir', 'w', '--smoke']
    assert overrides == [('a.b', '3'), ('c', ''), ('d', 'e=f'), ('g', '-1')]
    with pytest.raises(UserError, match='--config.a: no value given; write --config.a=VALUE'):
        configs.split_arguments(['--config.a'])
    with pytest.raises(UserError, match='--config.a: no value given'):
        configs.split_arguments(['--config.a', '--workdir', 'w'])


def test_the_tree_is_a_plain_configdict(load):
    config = load()
    assert isinstance(config, ml_collections.ConfigDict)
    with pytest.raises(AttributeError):
        config.new_key = 1
