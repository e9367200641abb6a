"""In-batch negatives of two processes: loss and gradients of one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

# One process of two, with rows that the other does not have: 4 and 3 of 7, each with three texts.
PROCESS = """
import json, sys, torch
from torch import distributed
from heads import HeadOutput, Pooling

rank, texts = int(sys.argv[1]), torch.tensor(json.loads(sys.argv[2]))
distributed.init_process_group("gloo", rank=rank, world_size=2)
layer = torch.nn.Linear(6, 5)
with torch.no_grad():
    layer.weight.copy_(torch.linspace(-1, 1, 30).view(5, 6).sin())
    layer.bias.fill_(0.1)
model = torch.nn.parallel.DistributedDataParallel(layer)
own = texts[:, rank::2]  # as rows are dealt out
head = Pooling(temperature=0.1).train()
output = HeadOutput(model(own.flatten(0, 1)), {"texts": 3})
loss = head.loss(output, None)
share = 2 * head.loss_size(output, None) / 7
(share * loss).backward()
total = share * loss.detach() / 2
distributed.all_reduce(total)
measured = head.eval().metrics()
with torch.inference_mode():
    measured.update(*head.metric_inputs(output, None))
scores = {name: value.item() for name, value in measured.compute().items()}
print(json.dumps([total.item(), layer.weight.grad.tolist(), scores]))
"""


@pytest.fixture
def processes(tmp_path):
    """Runs both processes, and gives what they print."""

    def run(texts):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        commands = [[sys.executable, "-c", PROCESS, str(rank), json.dumps(texts.tolist())] for rank in range(2)]
        started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
        return [json.loads(process.communicate(timeout=200)[0]) for process in started]

    return run


def test_two_processes_learn_and_measure_as_one(processes):
    torch.manual_seed(0)
    texts = torch.randn(3, 7, 6)
    weight = torch.linspace(-1, 1, 30).view(5, 6).sin().requires_grad_()
    vectors = texts @ weight.T + 0.1
    stock = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=10)
    whole = stock.compute_loss_from_embeddings(list(vectors), torch.empty(0))
    whole.backward()
    answers = processes(texts)
    first, *others = torch.nn.functional.normalize(vectors.detach(), dim=-1)
    cosines = first @ torch.cat(others).T
    ranks = (cosines >= cosines[range(7), range(7)].unsqueeze(1)).sum(1)
    assert 1 < ranks.max() and 1 in ranks
    for loss, gradient, scores in answers:
        assert loss == pytest.approx(whole.item(), abs=1e-5)
        torch.testing.assert_close(torch.tensor(gradient), weight.grad, rtol=1e-4, atol=1e-6)
        assert scores["accuracy"] == pytest.approx((ranks == 1).float().mean().item(), abs=1e-6)
        assert scores["mrr"] == pytest.approx((1 / ranks).mean().item(), abs=1e-6)
