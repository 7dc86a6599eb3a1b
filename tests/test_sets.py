"The hyper-parameter sets that everybody shares are what the seeded sampler gives."
import json, optuna
from conftest import root
from cropnb.downstream import draw_sets, spaces

def test_sets():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    want = json.loads((root/'cropnb/sets.json').read_text())
    assert {p: {f: draw_sets(s, dict(smoke=1, demo=2, paper=10)[p]) for f,s in fs.items()} for p,fs in spaces.items()}==want
    lr = [s['lr'] for f in want['paper'].values() for s in f]; assert len(lr)==30 and min(lr)>=1e-5 and max(lr)<=1e-3
