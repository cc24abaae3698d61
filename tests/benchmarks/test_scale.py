"""
The S3 store in virtual time: every file finds its end, and its own name.
"""

from benchmarks.__main__ import main


def test_aFewUploads(capsys):
    # so many for so few directories that uploads of one receiver wait for each other
    words = ["--uploads=200", "--receivers=2", "--dead=0.5", "--shared=0.5", "--capacity=150"]
    assert main(["scale", *words, "--parts=2"]) == 0
    text = capsys.readouterr().out
    assert "50% of the receivers die at once" in text
    [line] = [each for each in text.splitlines() if each.startswith("     150 |")]
    cells = [cell.split()[0] for cell in line.split("|")]
    # it was throttled, names were numbered, and nobody waited for ever
    assert float(cells[3]) > 1
    assert float(cells[4]) > 1
    assert float(cells[7]) < 600
