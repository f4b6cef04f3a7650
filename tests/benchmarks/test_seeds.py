"""Seeds in one program, one after the other and in processes of their own: the same training."""

import json

from benchmarks import seeds

SMALL = dict(num_prompts=2, num_generations=2, max_completion_length=6)


def test_all_ways_train_the_same(tmp_path, capsys):
    overrides = [f'--config.grpo.{name}={value}' for name, value in SMALL.items()]
    overrides += [
        f'--config.model.{name}={value}'
        for name, value in dict(layers=1, dim=16, heads=2, kv_heads=2, mlp_dim=32).items()
    ]
    overrides += [
        '--config.grpo.optimizer.name=sgd',
        '--config.grpo.learning_rate.peak=0.5',
        '--config.grpo.learning_rate.warmup_steps=0',
    ]
    file = tmp_path / 'seeds.json'
    assert (
        seeds.main(
            ['--seeds', '2', '--iterations', '2', '--rounds', '1', '--json', str(file), *overrides]
        )
        == 0
    )
    found = json.loads(file.read_text())
    assert set(found['iterations_per_second']) == set(seeds.WAYS) == set(found['difference'])
    assert found['moved'] > 1e-2 and max(found['difference'].values()) < 1e-5
    assert 'pinned' in capsys.readouterr().out
