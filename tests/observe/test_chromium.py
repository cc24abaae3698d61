"""
L{tests.observe.chromium}.
"""

import pytest
import pytest_twisted

from tests.observe.chromium import browser

pytestmark = [pytest.mark.slow, pytest.mark.peer("chromium")]


@pytest_twisted.ensureDeferred
async def test_anExpressionThatFailsIsNotTrueYet(tmp_path):
    async with browser(tmp_path) as page:
        await page.evaluate("setTimeout(() => { window.loaded = { value: 7 } }, 300)")
        with pytest.raises(AssertionError, match="TypeError"):
            await page.evaluate("window.loaded.value")
        assert await page.waitFor("window.loaded.value") == 7
        with pytest.raises(AssertionError, match=r"never true.*ReferenceError"):
            await page.waitFor("nothing", seconds=0.1)
