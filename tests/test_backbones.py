"A method on another network, from the recipe to features of a season"
import numpy as np, pytest, torch
from cropnb.controls import untrained
from cropnb.data import series
from cropnb.encoder import load_encoder
from cropnb.encoders import BandTransformer, n_params
from cropnb.engine.recipes import named_part, recipe
from cropnb.engine.records import result
from cropnb.features import features
from cropnb.pretrain import encoder

small = dict(dim=32, blocks=1, pretrain_batch=64, backbone='bands')

# a loss over pairs, a teacher, layers taken apart, masks
@pytest.mark.parametrize('method, mode', [
    ('simclr', 'bimodal'), ('byol', 'unimodal'), ('vae', 'unimodal'), ('mae', 'bimodal')])
def test_a_method_on_a_transformer_over_bands(smoke, method, mode):
    r = recipe('smoke', method=method, **small)
    run = encoder(smoke.pairs, r, 0, mode)
    e = load_encoder(run.get())
    assert isinstance(e.net, BandTransformer)
    assert result(run)['parameters']==n_params(e.net)
    assert e.dim==32
    x = np.full((3, 5, 12), 1500, 'uint16')
    assert e.embed(x).shape==(3, 5, 32)

def test_it_serves_downstream(smoke):
    run = encoder(smoke.pairs, recipe('smoke', **small), 0)
    task = series(1, smoke.data, smoke.recipe, 0)
    assert np.load(features(task, run).get()/'val.npy').shape==(54, 8, 32)

def test_its_control(smoke):
    run = untrained(smoke.pairs, recipe('smoke', **small), 0)
    e = load_encoder(run.get())
    assert isinstance(e.net, BandTransformer)
    assert run.id!=untrained(smoke.pairs, recipe('smoke', **small|dict(backbone='resmlp')), 0).id

def test_the_usual_network_renames_nothing(smoke):
    r = recipe('smoke')
    assert 'backbone' not in named_part(r)
    said = encoder(smoke.pairs, r|dict(backbone='resmlp'), 0)
    assert said.id==encoder(smoke.pairs, r, 0).id

def test_a_network_that_does_not_exist():
    with pytest.raises(ValueError, match="backbone='vit' is not one of resmlp, bands"):
        recipe('smoke', backbone='vit')

def test_many_rows_in_parts():
    "A set of a million pixels fits into memory; a sample does not depend on the others"
    torch.manual_seed(0)
    net = BandTransformer(12, 32, 1).eval()
    x = torch.randn(50, 12)
    with torch.no_grad(): want = net(x)
    net.most = 16
    with torch.no_grad(): torch.testing.assert_close(net(x), want)
