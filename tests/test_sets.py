"The hyper-parameter sets that everybody shares are what the seeded sampler gives"
import json, optuna
from conftest import root
from cropnb.downstream import draw_sets, spaces

counts = dict(smoke=1, demo=2, desk=10, paper=10)
shared = json.loads((root/'cropnb/sets.json').read_text())

def test_sets_are_those_of_the_sampler():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert shared.keys()==spaces.keys()
    for profile,families in spaces.items():
        drawn = {f: draw_sets(space, counts[profile]) for f,space in families.items()}
        assert shared[profile]==drawn

def test_learning_rates_of_the_paper():
    lrs = [s['lr'] for sets in shared['paper'].values() for s in sets]
    assert len(lrs)==30
    assert min(lrs)>=1e-5
    assert max(lrs)<=1e-3
