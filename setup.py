"""reasonjax: fine-tune language models to reason, in pure JAX."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = pathlib.Path(__file__).parent
version = re.search(
    r"__version__ = '(.+)'", (here / 'reasonjax' / '__init__.py').read_text(encoding='utf-8')
).group(1)


class BuildWithConfigs(build_py):
    """Puts the configs into the wheel, where `reasonjax.config_files.shipped` finds them; an
    editable install has them in the checkout.

    Those of the benchmarks stay in the checkout, as the benchmarks do.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / 'reasonjax' / 'shipped' / 'configs'
            left_out = shutil.ignore_patterns('__pycache__', 'benchmark.py', 'device.py')
            shutil.copytree(here / 'configs', target, dirs_exist_ok=True, ignore=left_out)


setup(
    name='reasonjax',
    version=version,
    description='Fine-tune language models to reason, in JAX: SFT, GRPO and relatives, LoRA.',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass={'build_py': BuildWithConfigs},
    packages=find_packages(include=['reasonjax', 'reasonjax.*']),
    python_requires='>=3.11',
    install_requires=[
        # No accelerator pin: CPU, CUDA and TPU users choose their own jax (BUILD.md).
        # jaxlib 0.10.2 silently miscomputes some CPU reductions; releases after it are admitted
        # when they pass `reasonjax.selfcheck`.
        'jax>=0.10.1,!=0.10.2',
        'jaxlib>=0.10.1,!=0.10.2',
        'absl-py',
        'flax>=0.12',
        'grain>=0.2.18',
        'jinja2',
        'matplotlib',
        'ml_collections>=1.1',
        'numpy',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pebble',
        'pyarrow',
        'regex',
        'rich',
        'safetensors>=0.5',
        'sentencepiece>=0.2.1',
        'tensorflow-datasets>=4.9.10',
        'transformers>=5',
    ],
    extras_require={
        'test': [
            'pytest',
            'pytest-xdist>=3.2',
            'ruff>=0.12,<0.18',
            'scipy',
            'tensorboardX',
            'torch==2.13.0',
            'peft>=0.19',
            'lm-eval>=0.4.13',
            'setuptools>=70.1',  # builds the wheel that is tested
            'trl>=1.16',  # for its chat templates
        ],
        'eval': ['lm-eval>=0.4.13'],
        'tasks': ['math-verify[antlr4_13_2]'],
        # benchmarks.families; benchmarks.peers makes environments of its own
        'bench': ['torch==2.13.0'],
        'plan': ['libtpu'],
        'kernels': ['tokamax>=0.0.12'],
        'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.7,<10', 'mkdocstrings[python]>=1,<2'],
    },
)
