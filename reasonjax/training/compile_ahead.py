"""Programs that are compiled before they are first called, while something else compiles or
runs."""

import concurrent.futures
from typing import Any

import jax


class Ahead:
    """Compiles jitted functions in threads of their own: most of compiling is one thread's work,
    and a stage has several programs.

    What it compiles is what a call finds, if the shapes given here are those of the call: same
    dtypes, same placement. Where they are not, the call compiles again; a test counts that none of
    the stages' calls does.
    """

    def __init__(self) -> None:
        self._under_way: list[concurrent.futures.Future] = []
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    def start(self, program: Any, *shapes: Any) -> None:
        """Starts to compile a jitted function for these arguments (shapes, with shardings where
        arrays are placed), in the background.

        With several processes nothing happens: all would have to compile in the same order.
        """
        if jax.process_count() > 1 or not hasattr(program, 'lower'):
            return
        self._threads = self._threads or concurrent.futures.ThreadPoolExecutor(
            thread_name_prefix='compile'
        )
        self._under_way.append(self._threads.submit(lambda: program.lower(*shapes).compile()))

    def finish(self) -> None:
        """Waits for all that was started; raises what compiling raised. To be called before a
        program is."""
        under_way, self._under_way = self._under_way, []
        for one in under_way:
            one.result()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None


def shapes_of(tree: Any) -> Any:
    """Returns the shapes of arrays, with shardings where they are placed. An array that is not
    placed goes where the others are."""

    def of(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)

    return jax.tree.map(of, tree)
