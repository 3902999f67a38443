"""Ways to break the library, each a defect that a careful person could make. None may survive the tests.

A mutant replaces `old`, which stands once in the file, by `new`. When the code changes, change the mutant with it:
run.py stops at one that does not apply. Its file says which tests are to notice: those in C, or those of the PyTorch part.
"""

# ruff: noqa: E501  (lines of C are as long as they are)

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


ROUNDS = "csrc/exchange/rounds.c"
GATHER = "csrc/exchange/gather.c"
SPLIT = "csrc/exchange/split.c"
RANGES = "csrc/exchange/ranges.c"
SCHEDULE = "csrc/exchange/schedule.c"
LINK = "csrc/exchange/link.c"
CHECK = "csrc/exchange/check.c"
MESSAGE = "csrc/exchange/message.c"
COLLECTIVE = "csrc/exchange/collective.c"
STEP = "csrc/core/step.c"
REDUCE = "csrc/core/reduce.c"
COMM = "csrc/core/comm.c"
ACCUMULATE = "csrc/core/accumulate.c"
STATE = "csrc/core/state.c"
CONFIG = "csrc/core/config.c"
REDUCER = "csrc/core/reducer.c"
SETTINGS = "csrc/core/settings.c"
CHOICE = "csrc/core/choice.c"
MEASURE = "csrc/core/measure.c"
COST = "csrc/exchange/cost.c"
HOST = "csrc/device/host.c"
COMMIT = "csrc/device/cpu/commit.c"
DITHER = "csrc/device/dither.h"
OUTPUT = "csrc/device/cpu/output.c"
POOL = "csrc/device/cpu/pool.c"
SHARES = "csrc/core/shares.c"
NODE = "csrc/exchange/node.c"
SCATTER = "csrc/exchange/scatter.c"
GENERIC = "csrc/device/cpu/kernels_generic.h"
HEADER = "csrc/wire/header.c"
LOSSES = "csrc/transport/mpi/losses.c"
NCCL = "csrc/transport/nccl/"
TORCH = "python/gtopk/torch/"
CUDA = "csrc/device/cuda/"
EXAMPLES = "examples/"
ELASTIC = "python/gtopk/elastic.py"
ROLL_CALL = "python/gtopk/_roll_call.py"
STAGE = CUDA + "stage.cu"

MUTANTS = [
    # the default density
    Mutant("default density: it changes in every step", TORCH + "warmup.py", "(number >> low << low)", "number"),
    Mutant("default density: no step is dense", TORCH + "warmup.py", "None if step < dense_steps else ", ""),
    Mutant(
        "default density: Adam's is SGD's", TORCH + "optimizer.py", "SHARE if weights else share_of(optimizer)", "SHARE"
    ),
    Mutant(
        "default density: exchanged weights have Adam's",
        TORCH + "optimizer.py",
        "SHARE if weights else share_of(optimizer)",
        "share_of(optimizer)",
    ),
    Mutant("default density: the hook's is SGD's", TORCH + "ddp_hook.py", ", share_of(None))", ")"),
    Mutant(
        "default density: growth costs bytes",
        TORCH + "parts.py",
        " * grown_share(self.comm.size, self.options.merge_growth)",
        "",
    ),
    Mutant(
        "default density: few entries are as many",
        TORCH + "warmup.py",
        "max(density, LEAST / max(1, entries))",
        "density",
    ),
    Mutant(
        "momentum correction begins where it is clipped",
        TORCH + "parts.py",
        "return not self.as_gradients and ",
        "return ",
    ),
    Mutant(
        "momentum correction: what waits has no momentum",
        TORCH + "momentum.py",
        "        velocity.add_(residual, alpha=1 / momentum)\n        return Waiting(residual if nesterov else torch.zeros_like(residual), velocity)",
        "        return Waiting(residual, velocity)",
    ),
    Mutant(
        "momentum correction: SGD goes on with what it has given",
        TORCH + "momentum.py",
        'self._optimizer.state[self._parameters[name]]["momentum_buffer"] = None',
        "pass",
    ),
    Mutant(
        "momentum correction: it is all of rank 0's state that begins",
        TORCH + "parts.py",
        "not_here = begun.union(*self.comm.allgather_json(mine))",
        "not_here = begun",
    ),
    Mutant(
        "momentum correction: where it has begun on one rank it begins on none",
        TORCH + "parts.py",
        "mine = [i for i in sorted(begun) if momentum.has(names[i])]",
        "mine = sorted(begun)",
    ),
    Mutant(
        "momentum correction: without a residual SGD's momentum stays",
        TORCH + "parts.py",
        "(name in self.waiting or momentum.has(name))",
        "name in self.waiting",
    ),
    Mutant(
        "momentum correction: a velocity is dropped",
        TORCH + "parts.py",
        "(self._is_due(_entries(mine), density) or self._has_velocities(mine))",
        "self._is_due(_entries(mine), density)",
    ),
    Mutant(
        "momentum correction: dense steps take the velocity",
        TORCH + "parts.py",
        'chosen = options.hierarchy != "off" or corrected',
        'chosen = options.hierarchy != "off" or options.momentum_correction',
    ),
    Mutant(
        "momentum correction: what fails has begun",
        TORCH + "parts.py",
        "            self.close()  # all of it still waits\n            raise\n",
        "            raise\n",
    ),
    Mutant(
        "momentum correction: a state forgets that updates were clipped",
        TORCH + "synchronizer.py",
        'return {"as_gradients": True} if self.session.exchange.stays_gradient else {}',
        "return {}",
    ),
    Mutant(
        "momentum correction: of two momenta",
        TORCH + "synchronizer.py",
        "self.session.exchange.declines |= not momentum.is_one(optimizer)",
        "pass",
    ),
    Mutant(
        "momentum correction: a group's gradients are maximized as another's",
        TORCH + "momentum.py",
        "sign = sign_of(self._groups[id(self._parameters[name])])",
        "sign = 1.0",
    ),
    Mutant(
        "momentum correction never begins",
        TORCH + "synchronizer.py",
        "and not self.session.corrects_otherwise",
        "",
    ),
    Mutant("default density: growth has no limit", TORCH + "warmup.py", "min(4.0, growth**level)", "growth**level"),
    Mutant(
        "default density: growth with a density that was given",
        TORCH + "warmup.py",
        "GROWTH if schedule.is_default and ",
        "GROWTH if ",
    ),
    Mutant(
        "default density: a warm-up is forgotten",
        TORCH + "warmup.py",
        "density is None and warmup is None",
        "density is None",
    ),
    Mutant(
        "default density: dense for good",
        TORCH + "parts.py",
        'if before != after != "dense":',
        "if False:",
    ),
    # shards
    Mutant("peers: an overflow stays with one of them", COMM, "*nonfinite |= words[r].nonfinite;", ""),
    Mutant(
        "peers: a failure stays with one of them",
        COMM,
        "if (words[r].status != GTOPK_OK)",
        "if (words[r].status < 0 && r < 0)",
    ),
    Mutant(
        "peers: a step that they drop is committed",
        STEP,
        "    *drop = all && !mine;",
        "    *drop = 0;",
    ),
    Mutant(
        "peers: errors are not told",
        STEP,
        "status = comm_agree_with_peers(first->comm, status, &all);",
        "status = status == GTOPK_OK ? comm_agree_with_peers(first->comm, status, &all) : status;",
    ),
    Mutant(
        "peers: a device that breaks down is told to nobody else",
        REDUCER,
        "        comm_tell_peers(reducer->comm, reducer->step);\n",
        "",
    ),
    Mutant(
        "shards: what is whole is selected together with them",
        TORCH + "parts.py",
        "kinds[is_dense, segment.whole and not is_dense]",
        "kinds[is_dense, False]",
    ),
    Mutant(
        "shards: what is whole is not averaged over the node",
        TORCH + "synchronizer.py",
        "if self.shards is None or self.shards.peers.size == 1 or not wholes:",
        "if self.shards is None or self.shards.peers.size > 0 or not wholes:",
    ),
    Mutant(
        "shards: another model under fully_shard is enough",
        TORCH + "shards.py",
        "is_dtensor(tensor) and id(tensor) not in known:",
        "is_dtensor(tensor) and not known:",
    ),
    Mutant(
        "shards: a module that has its whole parameters now is refused",
        TORCH + "shards.py",
        "itertools.chain(shards, *(module",
        "itertools.chain(*(module",
    ),
    Mutant("the hook takes other ranks than DDP's", TORCH + "ddp_hook.py", "if theirs != ours:", "if not ours:"),
    Mutant(
        "shards: residuals of nodes that are gone are lost",
        TORCH + "sharded_state.py",
        "if int(replica) % size != mine:",
        "if int(replica) != mine:",
    ),
    Mutant(
        "shards: a node's overflow in a local step stays with one shard",
        TORCH + "local_steps.py",
        "self.nonfinite = any_of(peers, self.nonfinite)",
        "any_of(peers, self.nonfinite)",
    ),
    Mutant(
        "shards: what fails among the ranks of a node is not told to the other nodes",
        TORCH + "session.py",
        "self.comm.abort(",
        "str(",
    ),
    Mutant(
        "peers: a rank that gives up does not tell them",
        COMM,
        "    comm_tell_peers(comm, 0);\n",
        "",
    ),
    # a residual in bf16
    Mutant(
        "bf16: rounds to the nearest",
        DITHER,
        "(magnitude + dither_draw(index, key)) >> 16",
        "(magnitude + 0x7fffu + 0 * dither_draw(index, key)) >> 16",
    ),
    Mutant("bf16: every step draws the same", ACCUMULATE, "(rank << 40) + step", "(rank << 40) + 0 * step"),
    Mutant("bf16: all ranks draw the same", ACCUMULATE, "(rank << 40) + step", "0 * rank + step"),
    Mutant(
        "bf16: a deposit draws what another one did", COMMIT, "DITHER_DEPOSIT + number", "DITHER_DEPOSIT + 0 * number"
    ),
    Mutant(
        "bf16: what is found is not what was stored", "csrc/device/cpu/accumulate.c", "job->above = KERNEL_LARGEST;", ""
    ),
    Mutant(
        "bf16: a step that is undone has changed the residual",
        "csrc/device/cpu/accumulate.c",
        "(store->second_narrow ? store->second_narrow : store->narrow) + job->first",
        "store->narrow + job->first",
    ),
    Mutant("bf16: resumed training draws other numbers", TORCH + "parts.py", "steps_before=steps", "steps_before=7"),
    # the same on a GPU, emulated
    Mutant(
        "bf16 on a GPU: a step that is undone has changed the residual",
        CUDA + "launch_spans.c",
        "memory->second_narrow ? memory->second_narrow : memory->narrow,",
        "memory->narrow,",
    ),
    Mutant(
        "bf16 on a GPU: all places of a step draw the same",
        CUDA + "spans.h",
        "dither_key(residual->seed, place));",
        "dither_key(residual->seed, 0 * place));",
    ),
    Mutant(
        "bf16 on a GPU: every step draws the same",
        CUDA + "store.c",
        "    store->memory.seed = seed;\n",
        "    store->memory.seed = 0 * seed;\n",
    ),
    Mutant(
        "bf16 on a GPU: what is selected goes by what was there before it was rounded",
        CUDA + "accumulate.cu",
        "                sum = convert_float_from_bf16(args->narrow_to[place]);\n",
        "",
    ),
    Mutant(
        "bf16 on a GPU: what is set draws by its place in the call",
        CUDA + "store.c",
        "dither_bf16(in[i], (uint32_t)(offset + i), key)",
        "dither_bf16(in[i], (uint32_t)i, key)",
    ),
    Mutant(
        "bf16 on a GPU: the deposits of each launch draw the same",
        CUDA + "launch_spans.c",
        "args.deposits_before = next;",
        "args.deposits_before = 0;",
    ),
    # on the CPU, in what the tests of one residual do not meet
    Mutant(
        "bf16: what is set rounds as what is accumulated",
        "csrc/device/cpu/store.c",
        "dither_key(store->seed, DITHER_WRITE)",
        "dither_key(store->seed, DITHER_ACCUMULATE)",
    ),
    Mutant(
        "bf16: what a dense step leaves rounds as what was accumulated",
        "csrc/device/cpu/dense.c",
        "dither_key(store->seed, DITHER_MEAN)",
        "dither_key(store->seed, DITHER_ACCUMULATE)",
    ),
    Mutant("bf16: overflows to Inf", DITHER, "result = convert_if_less(result, 0x7f80u, result, 0x7f7fu);", ""),
    # nodes
    Mutant(
        "nodes: the sum leaves out a rank",
        HOST,
        "for (uint32_t p = 1; p < count; p++)",
        "for (uint32_t p = 1; p + 1 < count; p++)",
    ),
    Mutant("nodes: shares have the same indices", NODE, "(uint32_t)((uint64_t)from * setup->config.dim)", "0"),
    Mutant(
        "nodes: a rounding is kept for one rank of a node",
        COMMIT,
        "write_mean(store, 1 + journal->others,",
        "write_mean(store, 1,",
    ),
    Mutant(
        "nodes: what was pending is sent again",
        SHARES,
        "? pending_clear(reducer, step->stream) : status;\n}\n\ngtopk_status_t shares_keep",
        "? GTOPK_OK : status;\n}\n\ngtopk_status_t shares_keep",
    ),
    Mutant(
        "nodes: a velocity moves where nobody gave a gradient",
        SHARES,
        "bit_is_set(shares->anywhere, s) ? sum + at : NULL",
        "sum + at",
    ),
    Mutant(
        "nodes: ranks do not tell each other what they have",
        SHARES,
        "status = collective_union(",
        "if (0) status = collective_union(",
    ),
    Mutant(
        "nodes: the mean is of the nodes",
        "csrc/transport/places.c",
        "places.contributors = (uint32_t)map->size;",
        "places.contributors = (uint32_t)places.size;",
    ),
    Mutant(
        "nodes: auto keeps the slower one",
        REDUCER,
        "trials->node_s < trials->off_s;",
        "trials->node_s >= trials->off_s;",
    ),
    Mutant(
        "nodes: a state of all entries is loaded into a share",
        STATE,
        "reducer->shares ? arrays * reducer->record.dim : 0",
        "0 * arrays",
    ),
    Mutant(
        "nodes: what is cancelled is lost",
        SHARES,
        "        return keep_parts(reducer, reducer->stream);",
        "        return GTOPK_OK;",
    ),
    Mutant(
        "nodes: pieces of the sum lie on each other", SCATTER, "scatter->sum + piece * scatter->piece", "scatter->sum"
    ),
    Mutant("nodes on CUDA: what is there is overwritten", STAGE, "x[g][j] = old[g][j] + x[g][j];", "continue;"),
    Mutant("nodes on CUDA: an end of a span is overwritten", STAGE, "args->add ? *out + x : x", "x"),
    Mutant("nodes on CUDA: a gradient stays", STAGE, "            zero_four(", "            if (0) zero_four("),
    Mutant("nodes on CUDA: parts lie close", STAGE, "part * args.stride + i, NEXT", "part * args.length + i, NEXT"),
    Mutant(
        "nodes on CUDA: what is not divisible by four is left out",
        STAGE,
        "i = whole + grid_thread()",
        "i = args.length",
    ),
    Mutant(
        "nodes on CUDA: blocks count what others have added",
        STAGE,
        "    grid_sync(args.scratch); /* all have",
        "    /* all have",
    ),
    Mutant("nodes on CUDA: a set grows beyond its room", STAGE, "room ? before + count : 0", "before + count"),
    Mutant(
        "nodes on CUDA: what nobody gave is cleared when adding",
        CUDA + "launch_spans.c",
        "params->add ? KIND_BF16 : KIND_NONE",
        "KIND_NONE",
    ),
    Mutant(
        "nodes on CUDA: a rounding is kept for one rank of a node",
        CUDA + "commit.cu",
        "rest * (float)args.ranks",
        "rest",
    ),
    # kernels
    Mutant(
        "select: a thread reads what another one may have written",
        CUDA + "keys.h",
        "    if (level == 0) {\n        if (radix->prefix",
        "    if (radix->level == 1) {\n        if (radix->prefix",
    ),
    Mutant(
        "select: the first bin from the floor is one like the others",
        CUDA + "keys.h",
        "if (radix->prefix != 0 && radix->prefix != NEAR_LAST)",
        "if (radix->prefix != NEAR_LAST)",
    ),
    Mutant(
        "select: the last bin from the floor is one like the others",
        CUDA + "keys.h",
        "if (radix->prefix != 0 && radix->prefix != NEAR_LAST)",
        "if (radix->prefix != 0)",
    ),
    Mutant(
        "select: histograms from the floor are left as they are",
        CUDA + "select.cu",
        "    bins_clear(scratch->near_bins[0], 2 * CUDA_BINS);\n",
        "",
    ),
    Mutant(
        "merge: a block with many tiles believes its registers",
        CUDA + "merge.cu",
        "own_t own = {0, 0, end - begin <= 1};",
        "own_t own = {0, 0, 1};",
    ),
    Mutant(
        "a warp's search ends a place early",
        CUDA + "sets.h",
        "probe = begin + (uint64_t)(lane_id() + 1) * stride - 1;",
        "probe = begin + (uint64_t)lane_id() * stride;",
    ),
    Mutant(
        "decode: the last block looks before the others are done",
        CUDA + "decode.cu",
        "if (!grid_is_done(scratch))",
        "if (!is_first_thread())",
    ),
    Mutant(
        "deposit: what lies beyond the near entries was not sent",
        CUDA + "deposit.cu",
        "if (at == sent_begin + most) /* beyond */",
        "if (0)",
    ),
    Mutant(
        "commit: what was left out of a message shifts the rest",
        CUDA + "commit.cu",
        "i < firsts && first->index[i] == index ? first->value[i]",
        "i < firsts ? first->value[i]",
    ),
    Mutant(
        "spans that are not neighbours run into each other",
        CUDA + "launch_spans.c",
        "        if (apart)\n",
        "        if (0)\n",
    ),
    Mutant(
        "verdict: the first words are told to all",
        CUDA + "words.cu",
        "((const uint32_t *)args.words[w / WORDS])[w % WORDS]",
        "((const uint32_t *)args.words[0])[w % WORDS]",
    ),
    # exchange
    Mutant(
        "skip a deposit",
        ROUNDS,
        "&rounds->deposits[rounds->deposit_count++], step->words",
        "&rounds->deposits[0], step->words",
    ),
    Mutant(
        "use own undecoded values",
        ROUNDS,
        "rounds->current = *decoded;",
        "rounds->current = r == 0 ? *set : *decoded;",
    ),
    Mutant(
        "keep the undecoded sum that is sent on",
        ROUNDS,
        "rounds->current = *decoded;",
        "rounds->current = r > 0 ? *set : *decoded;",
    ),
    Mutant(
        "share of a deposit for one rank too few", ROUNDS, "1.0f / (float)round->group", "2.0f / (float)round->group"
    ),
    Mutant(
        "relay no payload",
        ROUNDS,
        "    rounds->in = rounds->out;\n    rounds->out = received;\n",
        "    rounds->in = received;\n",
    ),
    Mutant("relay under the old sender", ROUNDS, "if (rounds->addressed != round)", "if (0)"),
    Mutant(
        "topk adds up without the first rank",
        GATHER,
        "set = &gather->incoming;",
        "set = from == 0 ? &gather->sums[1] : &gather->incoming;",
    ),
    Mutant("forget the hand-back's quantisation", SCHEDULE, "bit + 1 < doublings || folded > 0", "bit + 1 < doublings"),
    Mutant(
        "never quantise the last round of a fold",
        SCHEDULE,
        "(int32_t)(rank + core))->quantise = 1;",
        "(int32_t)(rank + core));",
    ),
    Mutant("tree does not quantise", SCHEDULE, "        round->quantise = 1;\n", ""),
    Mutant("group of a merge too large", SCHEDULE, "round->group = 2u << bit;", "round->group = 4u << bit;"),
    Mutant("growth is rounded down", SCHEDULE, "ceil(entries * growth)", "floor(entries * growth)"),
    Mutant("growth has no limit", SCHEDULE, "fmin((double)dim, 4.0 * (double)k)", "(double)dim"),
    Mutant("no ABORT to the others", LINK, "if (peer != transport->rank)", "if (0)"),
    Mutant("the link is never broken", LINK, "atomic_store_explicit(&link->broken, status, memory_order_release);", ""),
    Mutant("an ABORT is read as a message", CHECK, "if (status == GTOPK_OK && last_word)", "if (0)"),
    Mutant("epoch not checked", CHECK, "header->epoch, link->epoch,", "link->epoch, link->epoch,"),
    Mutant("step not checked", CHECK, "header->step, expect->step,", "expect->step, expect->step,"),
    Mutant("reducer not checked", CHECK, "header->reducer, expect->reducer,", "expect->reducer, expect->reducer,"),
    Mutant("round not checked", CHECK, "header->round, expect->round,", "expect->round, expect->round,"),
    Mutant(
        "dense goes on without its headers",
        "csrc/exchange/dense.c",
        "gtopk_status_t status = dense->headers->ops->run(dense->headers, step);",
        "gtopk_status_t status = GTOPK_OK;",
    ),
    Mutant("ring passes sums on unsummed", COLLECTIVE, "shift < size - 1 ? sum : combine_copy", "combine_copy"),
    Mutant(
        "broadcast of the first piece only", COLLECTIVE, "} while (at < bytes && status == GTOPK_OK);", "} while (0);"
    ),
    # gtopk-split
    Mutant(
        "what a half was pruned of is lost",
        SPLIT,
        "&split->other, &split->decoded, ranges_at",
        "&split->pruned, &split->decoded, ranges_at",
    ),
    Mutant(
        "deposits at places of a range",
        SPLIT,
        "        status = device->ops->widen(device, into, range, step->stream);\n",
        "        (void)range;\n",
    ),
    Mutant(
        "the half that is kept is not pruned",
        SPLIT,
        "&split->incoming, here.k, &split->kept",
        "&split->incoming, split->most, &split->kept",
    ),
    Mutant(
        "an owner keeps no account of the last merge",
        SPLIT,
        "return status == GTOPK_OK ? settle(split, step) : status;",
        "return status;",
    ),
    Mutant(
        "what an owner rounds off is lost",
        SPLIT,
        "deposit(split, step, &split->all, &split->mine, range) : status;",
        "deposit(split, step, &split->all, &split->kept, range) : status;",
    ),
    Mutant(
        "an owner goes on with its own undecoded set",
        SPLIT,
        "&split->decoded, &split->incoming, (uint64_t)here.k",
        "&split->final, &split->incoming, (uint64_t)here.k",
    ),
    Mutant(
        "the update is quantised for those beyond only",
        SPLIT,
        "if (status == GTOPK_OK && split->all_hand_back)",
        "if (status == GTOPK_OK && split->partner != TRANSPORT_NONE)",
    ),
    Mutant("no growth", SPLIT, "config->k, config->growth, level);", "config->k, 1.0, level);"),
    Mutant("budgets are rounded down", RANGES, "share / dim + (share % dim != 0)", "share / dim"),
    Mutant("a cut without room", "csrc/device/cpu/sets.c", "if (!host_has_room(out, total, words))", "if (0)"),
    # queues
    Mutant(
        "a message leaves before the device has written it",
        MESSAGE,
        "return setup->device->ops->synchronize(setup->device, step->stream);",
        "return GTOPK_OK;",
    ),
    Mutant(
        "host memory for a transport of device memory",
        MESSAGE,
        "? ops->allocate(setup->device, bytes, what, &block)",
        "? ops->allocate_pinned(setup->device, bytes, what, &block)",
    ),
    Mutant(
        "nobody waits for the messages",
        STEP,
        "gtopk_status_t status = link_finish(group_link(group), group->steps[group->count - 1].deadline);",
        "gtopk_status_t status = GTOPK_OK;",
    ),
    Mutant(
        "commit though the messages did not come",
        STEP,
        "    if (status == GTOPK_OK)\n        status = bring_words(group);\n    for (",
        "    status = bring_words(group);\n    for (",
    ),
    Mutant(
        "a failed step stays in the queue",
        STEP,
        "if (status != GTOPK_OK && link_give_up(group_link(group)))",
        "if (0)",
    ),
    Mutant(
        "what cannot be queued ends nothing",
        LINK,
        "if (status != GTOPK_OK && transport->ops->stream_ordered)",
        "if (0)",
    ),
    Mutant("a rank that gave up is not looked for", LINK, "if (gone != TRANSPORT_NONE) {", "if (0) {"),
    Mutant(
        "a gradient that the device refused is left out",
        "csrc/core/accumulate.c",
        "            status = reducer_lose(reducer, status);\n",
        "            status = GTOPK_OK;\n",
    ),
    Mutant(
        "a commit that failed is told to nobody else",
        REDUCE,
        "        status = reducer_lose(reducer, status);\n",
        "        ;\n",
    ),
    Mutant(
        "another density while the commit is queued",
        SETTINGS,
        "may be queued. */\n    gtopk_status_t status = reducer->device->ops->synchronize(reducer->device, reducer->stream);",
        "may be queued. */\n    gtopk_status_t status = GTOPK_OK;",
    ),
    Mutant(
        "a reducer goes while its commit is queued",
        REDUCER,
        "        device_drain(reducer->device, reducer->stream);\n        reducer_destroy_exchange(",
        "        reducer_destroy_exchange(",
    ),
    Mutant("one reducer's failure is its own", HOST, "ok &= outcomes[i].words->ok;", "ok = outcomes[i].words->ok;"),
    Mutant(
        "what follows an error is sent all the same",
        HOST,
        "    if (!words->ok) {\n        header->flags |= WIRE_ABORT;",
        "    if (0) {\n        header->flags |= WIRE_ABORT;",
    ),
    Mutant(
        "what came with an error is passed on",
        HOST,
        "        wire_make_last_word(message, WIRE_FAILED_STEP);\n",
        "        ;\n",
    ),
    Mutant(
        "the last error is the one that is told",
        HOST,
        "    if (words->error == DEVICE_NO_ERROR)\n        words->error = error;",
        "    words->error = error;",
    ),
    Mutant("a set takes more than it has room for", HOST, "if (needed <= set->capacity)", "if (1)"),
    Mutant("a device reads another step's message", HEADER, "header->step == expect->step &&", "1 &&"),
    Mutant("a device awaits a tail that is not there", HEADER, " && !(header->flags & WIRE_TAIL) == !expect->tail", ""),
    Mutant("the end of a message is not looked at", HOST, "expect->tail && !wire_tail_matches(message, header)", "0"),
    Mutant("the tail is the same in every round", "csrc/wire/tail.h", "| (round + 1))", "| 1u)"),
    Mutant(
        "a relayed message keeps its old tail",
        HEADER,
        "    if (message[AT_FLAGS] & WIRE_TAIL)\n        wire_write_tail(message);\n",
        "",
    ),
    Mutant("a halted device decodes", "csrc/device/cpu/message.c", "if (host_is_halted(device, words))", "if (0)"),
    Mutant("a halted device's verdict is good", HOST, "(void)host_is_halted(device, outcomes[i].words);", ";"),
    # NCCL
    Mutant(
        "work is queued while NCCL is still queueing",
        NCCL + "nccl.c",
        "        status = poll(self, what, deadline);\n    return status == GTOPK_OK ? status : fail",
        "        status = GTOPK_OK;\n    return status == GTOPK_OK ? status : fail",
    ),
    Mutant(
        "a communicator is ended while a thread is inside NCCL",
        NCCL + "watchdog.c",
        "    await_outside(self);\n    const int entered",
        "    const int entered",
    ),
    Mutant(
        "an abort without a halt",
        NCCL + "watchdog.c",
        "        self->device.halt(self->device.device); /*",
        "        (void)0; /*",
    ),
    Mutant(
        "buffers of an abort that hangs are released", NCCL + "nccl.c", "return !self->is_left_behind;", "return 1;"
    ),
    Mutant(
        "NCCL hangs: what its stream needs is released",
        REDUCER,
        "reducer->device && !reducer->comm->link.stream_lost",
        "reducer->device",
    ),
    Mutant("NCCL hangs: the device is closed", "csrc/core/comm.c", " && !comm->link.stream_lost; i++", "; i++"),
    Mutant(
        "NCCL on one rank, another transport on the next", CONFIG, "if (mine->over_data != theirs->over_data)", "if (0)"
    ),
    Mutant("a hung abort is waited for again and again", NCCL + "nccl.c", "self->is_left_behind ? 0.0 : ", ""),
    Mutant(
        "an error of NCCL is told at the deadline",
        NCCL + "nccl.c",
        "        if (status != GTOPK_OK && status != GTOPK_ERR_TIMEOUT)\n            return fail(self, status);\n        if (nccl_now",
        "        if (nccl_now",
    ),
    Mutant("NCCL 2.17 is taken", NCCL + "library.h", "#define NCCL_OLDEST 21800", "#define NCCL_OLDEST 21700"),
    Mutant("a blocking communicator", NCCL + "nccl.c", ".blocking = 0", ".blocking = 1"),
    Mutant(
        "auto goes on with a halted device",
        "csrc/core/data.c",
        "    comm_forget_device(comm, comm->data_device);\n",
        "",
    ),
    Mutant(
        "messages of another device go over NCCL",
        LINK,
        "data->device && strcmp(data->device, device) != 0 ? link->control : data",
        "data",
    ),
    Mutant("a device reads another reducer's message", HEADER, " && header->reducer == expect->reducer", ""),
    Mutant("a device reads another epoch's message", HEADER, " && header->epoch == expect->epoch", ""),
    Mutant("a device reads a last word", HEADER, "return !(header->flags & WIRE_ABORT) && ", "return "),
    # core
    Mutant("a failed step counts", STEP, "step += status == GTOPK_OK;", "step += 1;"),
    Mutant(
        "commit though the exchange failed",
        STEP,
        "i < group->count && status == GTOPK_OK; i++)\n        status = commit(",
        "i < group->count; i++)\n        status = commit(",
    ),
    Mutant(
        "a reducer commits before the next one's exchange",
        STEP,
        "        status = exchange_one(group->reducers[i], &group->steps[i]);\n",
        "        status = exchange_one(group->reducers[i], &group->steps[i]);\n"
        "        if (i + 1 < group->count)\n"
        "            (void)group->reducers[i]->exchange->ops->commit(group->reducers[i]->exchange, &group->steps[i],\n"
        "                                                            &(device_target_t){0});\n",
    ),
    Mutant("non-finite in one of the reducers only", HOST, "        nonfinite |= outcomes[i].words->nonfinite;\n", ""),
    Mutant(
        "a failed step does not break",
        STEP,
        "    status = comm_settle(comm, status, group->reducers[0]->step);\n    group_end",
        "    group_end",
    ),
    Mutant(
        "segments left out are not scanned",
        ACCUMULATE,
        "    if (rollback || reducer_selects(reducer))\n",
        "    if (0)\n",
    ),
    # choosing an algorithm
    Mutant(
        "cost: nobody waits for the hand-back",
        COST,
        "    if (core < job->size)\n        seconds += send_set(costs, job, core, job->dim, (uint64_t)level",
        "    if (0)\n        seconds += send_set(costs, job, core, job->dim, (uint64_t)level",
    ),
    Mutant("cost: a ring goes round once", COST, "return headers + 2.0 * others *", "return headers + others *"),
    Mutant("cost: every message is a far one", COST, "distance < costs->each_node;", "0;"),
    Mutant(
        "auto: what was measured is forgotten",
        CHOICE,
        "measured[algorithm] > 0.0 ? measured[algorithm] : predicted[algorithm]",
        "predicted[algorithm]",
    ),
    Mutant(
        "timing of a merge: memory is released under what is queued",
        "csrc/exchange/probe_sets.c",
        "    device_drain(device, NULL);\n",
        "",
    ),
    Mutant("auto: a rank goes by its own times", CHOICE, "times[i % count] = fmax(times[i % count], all[i]);", ";"),
    Mutant("auto: the first step of an algorithm is timed", CHOICE, "choice->warm && choice->steps", "choice->steps"),
    Mutant(
        "auto: more steps are timed than there is room for",
        CHOICE,
        " && choice->steps + CHOICE_TIMES >= choice->window",
        "",
    ),
    Mutant(
        "auto: peers are not told of what went wrong",
        STEP,
        "    if (agreed)\n        comm_tell_peers(comm, group->reducers[0]->step);\n",
        "",
    ),
    Mutant("auto: in shares everything may be dense", CHOICE, "!shares || exchange_find(algorithm)->selects", "1"),
    Mutant("auto: another density changes nothing", SETTINGS, "status == GTOPK_OK && choice_is_open(reducer)", "0"),
    Mutant(
        "auto: ranks are not compared in it",
        CONFIG,
        "record->open ? GTOPK_ALGORITHM_AUTO : record->algorithm",
        "record->algorithm",
    ),
    Mutant(
        "costs: the slowest rank is not asked",
        MEASURE,
        "costs->accumulate_s = fmax(costs->accumulate_s, all[r].accumulate_s);",
        ";",
    ),
    Mutant(
        "costs: messages that are timed go while they are queued",
        MEASURE,
        "        device_drain(device, NULL); /* what is queued needs the buffer */\n",
        "",
    ),
    Mutant(
        "a trial's gradient goes while it is queued",
        "csrc/core/trial.c",
        "        device_drain(gradient->device, NULL);\n",
        "",
    ),
    Mutant(
        "another algorithm keeps no candidates",
        SETTINGS,
        "store_resize(reducer->store, reducer_store_k(algorithm, k));",
        "store_resize(reducer->store, 1);",
    ),
    Mutant(
        "another algorithm is taken though a rank could not",
        SETTINGS,
        "    if (status == GTOPK_OK) {\n        record.run",
        "    if (ready) {\n        record.run",
    ),
    Mutant(
        "another algorithm: what was made ready stays",
        SETTINGS,
        "    } else if (ready) {\n        reducer_destroy_exchange(fresh);",
        "    } else if (ready) {\n",
    ),
    # rollback
    Mutant(
        "rollback: segments left out of a dense step are not carried over",
        ACCUMULATE,
        "    if (rollback || reducer_selects(reducer))\n",
        "    if (reducer_selects(reducer))\n",
    ),
    Mutant(
        "rollback: what overflowed is not carried over",
        ACCUMULATE,
        "params.found_inf && reducer->record.rollback",
        "0",
    ),
    Mutant(
        "rollback: a non-finite step is not undone",
        STEP,
        "if (status == GTOPK_OK && reducer->verdict->nonfinite)\n        status = step_undo",
        "if (0)\n        status = step_undo",
    ),
    Mutant(
        "rollback: a cancelled step is forgotten",
        ACCUMULATE,
        "if (reducer->in_step && reducer->record.rollback)",
        "if (0)",
    ),
    Mutant(
        "rollback: a residual is read where it was",
        "csrc/core/residual.c",
        "reducer->record.rollback && reducer->in_step && reducer->segments.seen[segment]",
        "0",
    ),
    Mutant(
        "rollback: a velocity without a gradient is not carried over",
        "csrc/device/cpu/accumulate.c",
        "    if (store->second_velocity)\n",
        "    if (0)\n",
    ),
    Mutant(
        "rollback: a head that is not aligned is taken twice",
        "csrc/device/cpu/accumulate.c",
        "block > 0 && head > 0 ? head + (block - 1) * KERNEL_BLOCK",
        "block > 0 && head > 0 ? (block - 1) * KERNEL_BLOCK",
    ),
    Mutant("a segment twice", "csrc/core/segments.c", "else if (segments->seen[s])", "else if (0)"),
    Mutant(
        "joined is or",
        HOST,
        "words->joined &= (header->flags & WIRE_JOINED) != 0;",
        "words->joined |= (header->flags & WIRE_JOINED) != 0;",
    ),
    Mutant(
        "NONFINITE not taken from a message",
        HOST,
        "words->nonfinite |= (header->flags & WIRE_NONFINITE) != 0;",
        "",
    ),
    Mutant("state of another size loads", STATE, "(info.rank != rank || info.size != size)", "(info.rank != rank)"),
    Mutant(
        "consolidated state loads whole on each rank",
        STATE,
        "(fraction_t){reducer->record.each_node, info->size}",
        "(fraction_t){1, 1}",
    ),
    Mutant(
        "consolidated state keeps the sum where there are other ranks",
        STATE,
        "(fraction_t){reducer->record.each_node, info->size}",
        "(fraction_t){reducer->record.each_node, comm_size(reducer->comm)}",
    ),
    Mutant(
        "consolidated state: a share has what is one rank's",
        STATE,
        "(fraction_t){reducer->record.each_node, info->size}",
        "(fraction_t){1, info->size}",
    ),
    Mutant(
        "consolidated state of ranks at different steps",
        STATE,
        "        status = compare_progress(all, comm_size(comm));\n",
        "        (void)compare_progress;\n",
    ),
    Mutant("state checksum not checked", STATE, "if (crc != state_crc(state, bytes))", "if (0)"),
    Mutant("step not restored", STATE, "        reducer->step = info.step;\n", ""),
    Mutant("density not compared", CONFIG, '        {"density", mine->density, theirs->density},\n', ""),
    Mutant("order of segments not compared", CONFIG, "if (mine->lengths_hash != theirs->lengths_hash)", "if (0)"),
    # device
    Mutant("wrong tie rule", POOL, "key_magnitude(bound) - (first <= key_index(bound))", "key_magnitude(bound)"),
    Mutant("hint is believed", POOL, "return pool->cut || pool->floor <= 1 || pool->count >= k;", "return 1;"),
    Mutant(
        "contract the addition",
        GENERIC,
        "float sum = plain ? x + r : fmaf(job->scale, x, r);",
        "float sum = plain ? x + r : job->scale * x + r;",
    ),
    Mutant(
        "store what is not finite",
        GENERIC,
        "            bad = 1;\n            sum = r;\n            bits = generic_bits(r);\n        }\n        job->to[i] = sum;\n        count",
        "            bad = 1;\n        }\n        job->to[i] = sum;\n        count",
    ),
    Mutant(
        "keep a zero",
        GENERIC,
        "first & (magnitude - 1 < GENERIC_INFINITY - 1);",
        "first & (magnitude < GENERIC_INFINITY);",
    ),
    Mutant("a merge overflows unseen", GENERIC, "*nonfinite |= largest >= GENERIC_INFINITY;", ""),
    Mutant(
        "ties go to the last entries",
        GENERIC,
        "tie = magnitude == least && ties > 0;",
        "tie = magnitude == least && ties > 0 && i + ties >= count;",
    ),
    Mutant("clear without what was rounded off", COMMIT, "selected->value[i] - sent, key", "0.0f, key"),
    Mutant("deposits in one round only", COMMIT, "d < journal->deposit_count", "d < 1 && d < journal->deposit_count"),
    Mutant("a non-finite step commits", OUTPUT, "return words->nonfinite || words->joined;", "return words->joined;"),
    Mutant(
        "a step commits that all have joined",
        OUTPUT,
        "return words->nonfinite || words->joined;",
        "return words->nonfinite;",
    ),
    Mutant("a dense sum is not checked", "csrc/device/cpu/dense.c", "if (!all_finite(sum, store->dim))", "if (0)"),
    Mutant("outputs are not cleared", OUTPUT, "else if (!target->are_zero)", "else if (0)"),
    Mutant(
        "sum in place of mean",
        COMMIT,
        "float mean = final->value[i] / (float)divisor;",
        "float mean = final->value[i];",
    ),
    Mutant(
        "sum in place of mean in arrays",
        COMMIT,
        "target->values[i] = final->value[i] / (float)divisor;",
        "target->values[i] = final->value[i];",
    ),
    Mutant("a failed step commits", OUTPUT, "if (!words->ok)", "if (0)"),
    Mutant("what 16 bits cannot hold is lost", COMMIT, "if (mean != stored && store)", "if (0)"),
    Mutant("velocity is not masked", COMMIT, "            store->velocity[mine] = 0.0f;\n", ""),
    Mutant(
        "the caller's denormals are flushed", "csrc/util/fpenv.h", r"stmxcsr %0\n\tldmxcsr %1", r"stmxcsr %0\n\tnop"
    ),
    Mutant(
        "the core computes with the caller's flags",
        REDUCER,
        "    reducer->environment = fpenv_enter();\n",
        "    reducer->environment = fpenv_enter();\n    fpenv_leave(reducer->environment);\n",
    ),
    Mutant(
        "the rank in a sample is counted in strides",
        "csrc/device/cpu/rank.c",
        "rank = k * SAMPLE / count;",
        "rank = k / stride;",
    ),
    # wire
    Mutant("no CRC", HEADER, "if (crc != sent)", "if (0)"),
    Mutant("count beyond k", HEADER, "header->count > header->k || header->k > header->dim", "header->k > header->dim"),
    Mutant("trailing bytes are let pass", HEADER, "received < size || (received > size && !padded)", "received < size"),
    Mutant(
        "padding of indices not checked",
        "csrc/wire/elias_fano_fast.c",
        "if (low_padding(in, low_bytes, (uint64_t)count * low) != 0 ||",
        "if (",
    ),
    Mutant("bf16 rounds down", "csrc/wire/convert.h", "magnitude + 0x7fffu + (magnitude >> 16 & 1)", "magnitude"),
    Mutant(
        "scale one too small",
        "csrc/wire/convert.c",
        "scale = exponent - 6 + (mantissa > 0x7e0000u);",
        "scale = exponent - 7 + (mantissa > 0x7e0000u);",
    ),
    # PyTorch
    Mutant(
        "a broadcast loses the residuals",
        TORCH + "session.py",
        "        self.exchange.park()\n        self.restore(",
        "        self.restore(",
    ),
    Mutant(
        "a new reducer has momentum 0",
        TORCH + "parts.py",
        "self._density, self._momentum = density, (0.0, False)",
        "self._density = density",
    ),
    Mutant(
        "velocity is lost in a new reducer",
        TORCH + "parts.py",
        "        if entry.velocity is not None:\n            part.reducer.set_velocity(",
        "        if False:\n            part.reducer.set_velocity(",
    ),
    Mutant(
        "the state leaves out what waits",
        TORCH + "parts.py",
        "found = {name: _copied(entry) for name, entry in self.waiting.items()}",
        "found = {}",
    ),
    Mutant(
        "nesterov is not passed on",
        TORCH + "parts.py",
        "part.reducer.set_momentum(momentum, nesterov)",
        "part.reducer.set_momentum(momentum, False)",
    ),
    Mutant(
        "the loss scale stays in the gradients",
        TORCH + "exchange.py",
        "                None, table, scale, zero_input",
        "                None, table, 1.0, zero_input",
    ),
    Mutant(
        "found_inf is not passed on",
        TORCH + "exchange.py",
        "zero_input=not found_inf, found_inf=found_inf, input_stays=True",
        "zero_input=not found_inf, input_stays=True",
    ),
    Mutant(
        "gradients are said to be zero and are not",
        TORCH + "exchange.py",
        "scale, zero_input=not found_inf, ",
        "scale, zero_input=False, ",
    ),
    Mutant(
        "the wrapped step adds momentum again",
        TORCH + "momentum.py",
        "group.update(momentum=0.0, weight_decay=0.0, nesterov=False)",
        "group.update(weight_decay=0.0, nesterov=False)",
    ),
    Mutant(
        "dense parameters have no momentum",
        TORCH + "momentum.py",
        "        if is_dense:\n            force.add_(parameter.grad, alpha=sign)\n",
        "        if is_dense:\n            continue\n",
    ),
    Mutant(
        "the wrapped step unscales again",
        TORCH + "amp.py",
        "kept = {name: attributes.pop(name) for name in _ATTRIBUTES if name in attributes}",
        "kept: dict[str, Any] = {}",
    ),
    Mutant(
        "a step that is not finite is applied",
        TORCH + "mixin.py",
        "        if not nonfinite:\n            with sync.wrapped_step",
        "        if True:\n            with sync.wrapped_step",
    ),
    Mutant(
        "batches are counted on after a join",
        TORCH + "synchronizer.py",
        "        self.batches = 0\n        return",
        "        return",
    ),
    Mutant(
        "a gradient that was not exchanged is applied",
        TORCH + "synchronizer.py",
        "stack.enter_context(self._own_gradients_hidden(optimizer))",
        "pass",
    ),
    Mutant("ranks may be at different steps", TORCH + "agreement.py", 'if entry["at"] != first:', "if False:"),
    Mutant(
        "names are not compared between ranks", TORCH + "segments.py", "return [self.name, list", 'return ["", list'
    ),
    Mutant(
        "names are not compared with a state's",
        TORCH + "checkpoint.py",
        "        if here != there:",
        "        if here[1] != there[1]:",
    ),
    Mutant(
        "a consolidated state loads whole on each rank",
        TORCH + "checkpoint.py",
        'part = among(session, saved["size"]) / session.comm.size',
        'part = among(session, saved["size"])',
    ),
    Mutant(
        "a consolidated velocity loads whole on each rank",
        TORCH + "checkpoint.py",
        "Waiting(*(None if values is None else _scaled(values, part) for values in entry))",
        "Waiting(_scaled(entry.residual, part), entry.velocity)",
    ),
    Mutant(
        "a state keeps the sum where updates are means",
        TORCH + "checkpoint.py",
        "Fraction(1 if session.sums else session.comm.size, 1 if session.sums else ranks)",
        "Fraction(1)",
    ),
    Mutant(
        "a state keeps the mean where updates are sums",
        TORCH + "checkpoint.py",
        "Fraction(1 if session.sums else session.comm.size, 1 if session.sums else ranks)",
        "Fraction(session.comm.size, ranks)",
    ),
    Mutant(
        "a sharded state keeps the sum where there are other replicas",
        TORCH + "sharded_state.py",
        "scaled(found.pop(name), part)",
        "found.pop(name)",
    ),
    Mutant(
        "a sharded state is read whose number of replicas is wrong",
        TORCH + "sharded_state.py",
        "if wrong or replicas < 1:",
        "if replicas < 1:",
    ),
    Mutant(
        "a consolidated state of ranks at different steps",
        TORCH + "checkpoint.py",
        "    agree_on_progress(session.comm, None if session.run is None else (session.run, session.steps), 0)\n",
        "    agree_on_progress\n",
    ),
    Mutant(
        "a consolidated state of different models",
        TORCH + "checkpoint.py",
        '    agree(session.comm, "parameters", [[name, list(parameter.shape)] for name, parameter in parameters.items()])\n',
        "    agree\n",
    ),
    Mutant(
        "DDP hook: a state that was just loaded is left out of a consolidated one",
        TORCH + "ddp_hook.py",
        "        if self._loaded is None:\n            return self.session, self._parameters\n",
        "        if True:\n            return self.session, self._parameters\n",
    ),
    Mutant(
        "local steps: one rank alone keeps where a period of several began",
        TORCH + "local_steps.py",
        "            self._starts = {}  # of periods with others: this rank goes on from where it is\n",
        "",
    ),
    Mutant(
        "local steps: what one rank alone has applied waits in its state",
        TORCH + "local_steps.py",
        "        self._starts, self.since = {}, 0\n",
        "        self.since = 0\n",
    ),
    Mutant(
        "a sharded state is read whose sums are too large",
        TORCH + "sharded_state.py",
        "_finite(name, scaled(found.pop(name), part))",
        "scaled(found.pop(name), part)",
    ),
    Mutant(
        "a sharded state: a velocity without a residual is dropped",
        TORCH + "sharded_state.py",
        "    if alone:\n",
        "    if False:\n",
    ),
    Mutant(
        "a velocity without a residual is dropped",
        TORCH + "state_form.py",
        "    if alone is not None:\n",
        "    if False:\n",
    ),
    Mutant(
        "a velocity is lost where its parameter is sent dense from now on",
        TORCH + "parts.py",
        "Waiting(momentum.without_velocity(name, entry.residual, entry.velocity), None)",
        "Waiting(entry.residual, None)",
    ),
    Mutant(
        "a residual with momentum in it gets it once more where it is sent dense",
        TORCH + "momentum.py",
        "residual * (1 - factor) + velocity",
        "residual + velocity",
    ),
    Mutant(
        "a velocity is taken for one of Nesterov's",
        TORCH + "momentum.py",
        '(factor**2 if group["nesterov"] else factor)',
        "factor**2",
    ),
    Mutant(
        "a lost residual is not noticed",
        TORCH + "state_form.py",
        "if name not in entries or name not in saved[listed]:",
        "if name not in saved[listed]:",
    ),
    Mutant(
        "DDP: a bucket is accumulated twice",
        TORCH + "ddp_hook.py",
        "            mine.accumulated = True\n",
        "",
    ),
    Mutant(
        "DDP: the loss scale stays in the residual",
        TORCH + "ddp_hook.py",
        "self.session.step(tensors, 1.0 / self._scale(), ",
        "self.session.step(tensors, 1.0, ",
    ),
    Mutant(
        "DDP: what no rank used is lost",
        TORCH + "ddp_hook.py",
        "            after_backward(lambda: self._give_back(after))\n",
        "            pass\n",
    ),
    Mutant(
        "DDP: what another rank used is given back, too",
        TORCH + "ddp_hook.py",
        "if grad is None or not torch.equal(grad, update.applied):",
        "if True:",
    ),
    Mutant(
        "DDP: an error does not end the step",
        TORCH + "ddp_hook.py",
        "                self._session.cancel()\n",
        "                pass\n",
    ),
    Mutant(
        "DDP: nobody looks for an overflow",
        TORCH + "ddp_hook.py",
        "found_inf = self.session.scaled and not all(",
        "found_inf = False and not all(",
    ),
    Mutant(
        "an overflow is not agreed on",
        TORCH + "session.py",
        "            found_inf = self.anywhere(found_inf)\n",
        "            self.anywhere(found_inf)\n",
    ),
    Mutant(
        "only a rank that has a scaler asks for overflows",
        TORCH + "agreement.py",
        'any(entry["scaled"] for entry in found)',
        "scaled",
    ),
    Mutant(
        "the other ranks are asked before tensors are looked at",
        TORCH + "session.py",
        "        self.exchange.hand_over(tensors)  # what is refused is refused before the other ranks hear of it\n        try:\n            self._sameness.look(self.comm, tensors)\n",
        "        self._sameness.look(self.comm, tensors)\n        self.exchange.hand_over(tensors)\n        try:\n",
    ),
    Mutant(
        "an interrupted step is not ended",
        TORCH + "session.py",
        "        except BaseException:  # Ctrl-C in between, too\n            self.exchange.cancel()\n",
        "        except BaseException:\n",
    ),
    Mutant(
        "gradients are looked at for ever",
        TORCH + "sameness.py",
        "        self._left -= 1\n",
        "",
    ),
    Mutant(
        "different gradients count as the same",
        TORCH + "sameness.py",
        "if found.count(found[0]) < len(found):",
        "if False:",
    ),
    Mutant(
        "tensors that share memory are handed over",
        TORCH + "segments.py",
        "return True not in map(gt, ends, sorted(starts)[1:])",
        "return True",
    ),
    Mutant(
        "tensors that share memory are overwritten",
        TORCH + "exchange.py",
        "                step.fixed.add(place)\n",
        "                pass\n",
    ),
    Mutant(
        "what has gaps is overwritten",
        TORCH + "segments.py",
        "if fixed or not is_dense(tensor):",
        "if fixed:",
    ),
    Mutant(
        "a flat tensor is taken for one in the order of dimensions",
        TORCH + "segments.py",
        "(block if tensor.dim() == 1 else self.shaped(block)).copy_(tensor.detach())",
        "self.shaped(block).copy_(tensor.detach().view(self.shape))",
    ),
    Mutant(
        "a residual of another shape is taken over",
        TORCH + "parts.py",
        "        self._check_shapes(segments)\n",
        "",
    ),
    Mutant(
        "a wrapped class has the mixin as a base",
        TORCH + "optimizer.py",
        "meta(base.__name__, (base,), ",
        "type(base)(base.__name__, (DistributedMixin, base), ",
    ),
    Mutant(
        "the wrapped optimizer's own code finds gtopk's methods",
        TORCH + "mixin.py",
        "return getattr(super(), name, None) if self._gtopk.stepping else None",
        "return None",
    ),
    Mutant(
        "backward after synchronize is not noticed",
        TORCH + "mixin.py",
        "            sync.check_untouched()\n",
        "            pass\n",
    ),
    Mutant(
        "the prefix of compiled models stays in a state",
        TORCH + "checkpoint.py",
        "    saved = with_names_as_in(parameters, saved)\n",
        "",
    ),
    Mutant(
        "a missing residual has the default type",
        TORCH + "checkpoint.py",
        'torch.zeros(shape, dtype=torch.float32, device="cpu")',
        "torch.zeros(shape)",
    ),
    Mutant(
        "local steps: the residual after a failed exchange has the differences in it",
        TORCH + "local_steps.py",
        "            if not taken:\n                exchange.set_residuals(kept)\n",
        "            pass\n",
    ),
    Mutant(
        "local steps: only the rank with Inf skips the exchange",
        TORCH + "local_steps.py",
        "if all(row[2] for row in rows) else None",
        "if finite else None",
    ),
    Mutant(
        "local steps: nobody goes back",
        TORCH + "local_steps.py",
        "                if not finite:\n                    self._go_back(optimizer, parameters)\n",
        "",
    ),
    Mutant(
        "local steps: a gradient that is not finite is applied",
        TORCH + "local_steps.py",
        "self.nonfinite = scaled.found_inf or not (scaled.present or all_finite(gradients))",
        "self.nonfinite = scaled.found_inf",
    ),
    Mutant(
        "local steps: gradients stay scaled",
        TORCH + "local_steps.py",
        "            torch._foreach_mul_(gradients, scaled.scale)\n",
        "            pass\n",
    ),
    Mutant(
        "local steps: what was frozen is exchanged for ever",
        TORCH + "local_steps.py",
        "            self._starts = {name: start for name, start in self._starts.items() if name in parameters}\n",
        "            pass\n",
    ),
    Mutant(
        "local steps: weights that were loaded count as learned",
        TORCH + "local_steps.py",
        "            if not self.since and not start.is_at(parameter):\n",
        "            if False:\n",
    ),
    Mutant(
        "local steps: a rank that has joined does not take the update",
        TORCH + "local_steps.py",
        "all_joined = self.session.step_joined(updates=updates)",
        "all_joined = self.session.step_joined()",
    ),
    Mutant(
        "local steps: what a rank had done when it joined is lost",
        TORCH + "local_steps.py",
        "        while self.since:\n            self.exchange(optimizer)\n",
        "",
    ),
    Mutant(
        "local steps: ranks may start from different weights",
        TORCH + "local_steps.py",
        "        check_same(self.session.comm, chosen, self._starts, self.velocities)\n",
        "",
    ),
    Mutant(
        "local steps: weights start under the names of the state",
        TORCH + "mixin.py",
        "            saved = checkpoint.with_names_as_in(sync.names.of(self), saved)\n",
        "",
    ),
    Mutant(
        "ranks are not told that one exchanges gradients and another weights",
        TORCH + "options.py",
        '[OPTIONS, f"exchange={self.exchanged}", ',
        "[OPTIONS, ",
    ),
    Mutant(
        "local steps: a consolidated state leaves out what was done since the exchange",
        TORCH + "local_steps.py",
        "                    mine = difference.cpu().contiguous()\n",
        "                    pass\n",
    ),
    Mutant(
        "local steps: another rank's state leaves the weights as they are",
        TORCH + "local_steps.py",
        "                if not own:\n",
        "                if False:\n",
    ),
    Mutant(
        "local steps: 16-bit weights start from 16 bits",
        TORCH + "start.py",
        "        moved = self.weights.to(self.wide)\n",
        "        moved = self.weights.bfloat16().to(self.wide)\n",
    ),
    Mutant(
        "local steps: what a start in bf16 rounds away is lost",
        TORCH + "start.py",
        "            self.weights.copy_(moved)\n",
        "            parameter.copy_(self.weights.copy_(moved))\n",
    ),
    Mutant(
        "local steps: a start in bf16 goes on from float32",
        TORCH + "local_steps.py",
        'return Start(parameter, self.options.start_dtype == "bf16")',
        "return Start(parameter)",
    ),
    Mutant(
        "sharded states: what a start in bf16 rounds away is lost",
        TORCH + "start.py",
        "        if self.weights.dtype is self.wide and self.is_at(parameter):",
        "        if True:",
    ),
    Mutant(
        "sharded states: weights that are loaded are rounded as their start is",
        TORCH + "local_steps.py",
        "parameters[name].copy_(values)",
        "parameters[name].copy_(start.weights)",
    ),
    Mutant(
        "sharded states: the start of double weights is read in single",
        TORCH + "sharded_state.py",
        'wide_type(parameter) if what == "start" else torch.float32',
        "torch.float32",
    ),
    Mutant(
        "local steps: those behind after a loss go on from where they were",
        TORCH + "local_steps.py",
        "            parameters[name].copy_(weights)\n",
        "            pass\n",
    ),
    Mutant(
        "local steps: the outer momentum is not Nesterov's",
        TORCH + "local_steps.py",
        "return update.add_(velocity * factor)",
        "return update.copy_(velocity)",
    ),
    Mutant(
        "local steps: the residual of gradients is taken for one of weights",
        TORCH + "local_steps.py",
        'if "start" not in saved and saved["residual"]:',
        "if False:",
    ),
    Mutant("DDP: a loaded state is not looked at", TORCH + "ddp_hook.py", "    check_form(state)\n", ""),
    # GPUs
    Mutant(
        "kernels are unloaded while another device has them",
        CUDA + "module.c",
        "if (--at->users == 0)",
        "if (at->users-- > 0)",
    ),
    Mutant(
        "packed kernels may end anywhere",
        CUDA + "unpack.c",
        "return at == bytes && decoder->in == decoder->end && decoder->code == 0 && !decoder->ran_out;",
        "return at == bytes;",
    ),
    Mutant(
        "packed kernels: a match is longer than what is left",
        CUDA + "unpack.c",
        "if (back > at || length > bytes - at)",
        "if (back > at || length > bytes - at + 1)",
    ),
    Mutant(
        "memory of the caller's pool goes to the driver",
        CUDA + "context.c",
        "if (block && device->allocator.release)",
        "if (block && !device->driver)",
    ),
    Mutant(
        "memory of the caller's pool is asked for without a stream",
        CUDA + "context.c",
        "from->allocate(from->context, bytes, stream);",
        "from->allocate(from->context, bytes, NULL);",
    ),
    Mutant(
        "the pool loses its memory with the context",
        CUDA + "store.c",
        "if (entered || device->allocator.release)",
        "if (entered)",
    ),
    Mutant(
        "every GPU is the first",
        CUDA + "open.c",
        "device->driver->cuDeviceGet(&device->gpu, ordinal)",
        "device->driver->cuDeviceGet(&device->gpu, 0)",
    ),
    Mutant(
        "gradients of a GPU are taken from the default stream",
        "python/gtopk/_devices.py",
        "return int(cuda.current_stream(self.gpu).cuda_stream)",
        "return None",
    ),
    Mutant(
        "another package's stream is not used",
        "python/gtopk/_tensors.py",
        "return self.device.stream() if self._stream is None else self._stream",
        "return self.device.stream()",
    ),
    Mutant(
        "a tensor of another GPU is taken",
        "python/gtopk/_devices.py",
        "return bool(tensor.is_cuda) and int(tensor.get_device()) == self.gpu",
        "return bool(tensor.is_cuda)",
    ),
    Mutant(
        "memory of a GPU comes from the driver",
        "python/gtopk/reducer.py",
        "allocator=_devices.allocator(named),",
        "allocator=None,",
    ),
    Mutant(
        "a model on two GPUs is not refused",
        TORCH + "parameters.py",
        "if parameter.device != first[1]:",
        "if parameter.device.type != first[1].type:",
    ),
    Mutant(
        "a model that moved is not noticed",
        TORCH + "synchronizer.py",
        "[p.dtype for p in exchanged], [p.device for p in exchanged]",
        "[p.dtype for p in exchanged], []",
    ),
    Mutant(
        "copies of a GPU's gradients are made on the host",
        TORCH + "segments.py",
        "torch.float32, device=self.device)",
        'torch.float32, device="cpu")',
    ),
    Mutant(
        "the loss scale and what overflowed are mixed up on a GPU",
        TORCH + "amp.py",
        "brought = iter(torch.stack(tensors).tolist())",
        "brought = reversed(torch.stack(tensors).tolist())",
    ),
    # the ranks that are left
    Mutant(
        "survivors: what fails on one of them is told to nobody",
        COMM,
        "        status = control->ops->agree(control, status, control->ops->now(control) + comm->link.timeout);\n",
        "        status = status;\n",
    ),
    Mutant(
        "survivors: a rank that failed agrees",
        COMM,
        "control->ops->agree(control, status, control",
        "control->ops->agree(control, GTOPK_OK, control",
    ),
    Mutant(
        "survivors: they agree for as long as an exchange may take",
        COMM,
        "control->ops->now(control) + comm->link.timeout);",
        "control->ops->now(control) + config->timeout);",
    ),
    Mutant(
        "survivors: setting up may take as long as an exchange",
        COMM,
        "comm->link.timeout = transport_setup_seconds(config);",
        "comm->link.timeout = config->timeout;",
    ),
    Mutant(
        "survivors: an exchange may take as long as setting up",
        COMM,
        "    comm->link.timeout = config->timeout;\n",
        "",
    ),
    Mutant("survivors: setup_timeout may be anything", COMM, " || !is_seconds(full->setup_timeout)", ""),
    Mutant(
        "survivors: of any transport",
        COMM,
        "!config->transport || strcmp(config->transport, control->ops->name) != 0",
        "!config->transport",
    ),
    Mutant("survivors: of the parent process", COMM, "if (before->owner != getpid())", "if (before->owner == 0)"),
    Mutant("survivors: exchanges may travel otherwise", COMM, "    if (config->data)\n", "    if (0)\n"),
    Mutant(
        "survivors: a communicator with a second transport survives",
        COMM,
        "comm && comm->link.data == comm->link.control && comm",
        "comm && comm",
    ),
    Mutant(
        "survivors: setup_timeout is not the transport's",
        "csrc/transport/transport.h",
        "return config->setup_timeout > 0.0 ? config->setup_timeout : config->timeout;",
        "return config->timeout;",
    ),
    Mutant("over MPI: every MPI goes on", LOSSES, "MPI_SUCCESS && found && *value;", "MPI_SUCCESS || found || *value;"),
    Mutant(
        "over MPI: ranks that wait are left waiting",
        LOSSES,
        "return MPIX_Comm_revoke(comm);",
        "return MPI_Barrier == NULL || comm == MPI_COMM_NULL;",
    ),
    Mutant(
        "over MPI: who is lost ends the agreement",
        LOSSES,
        "return kind == MPIX_ERR_PROC_FAILED;",
        "return kind == MPI_ERR_LASTCODE;",
    ),
    Mutant(
        "over MPI: who is lost is in the new communicator",
        LOSSES,
        "return MPIX_Comm_shrink(comm, left);",
        "return MPI_Comm_dup(comm, left);",
    ),
    Mutant(
        "over MPI: MPI is finalized though a rank is lost",
        "csrc/transport/mpi/survivors.c",
        "mpi_process.lost = 1",
        "mpi_process.lost = 0",
    ),
    # the loss of a rank
    Mutant("loss: who is behind leads", TORCH + "attach.py", "first = max(range", "first = min(range"),
    Mutant(
        "loss: a step that was missed is forgotten",
        TORCH + "attach.py",
        "        holder.missed_step(optimizer)\n",
        "        pass\n",
    ),
    Mutant(
        "loss: parameters are left as they are",
        TORCH + "attach.py",
        "            parameter.copy_(values)\n",
        "            pass\n",
    ),
    Mutant("loss: ranks may be apart", TORCH + "attach.py", "if its_steps < steps - 1 or", "if"),
    Mutant(
        "loss: the residual is dropped",
        TORCH + "session.py",
        "        self.exchange.park()\n        self.comm =",
        "        self.exchange.close()\n        self.comm =",
    ),
    Mutant(
        "loss: what was sent dense counts twice",
        TORCH + "parts.py",
        'part.reducer.next_algorithm == "dense"',
        "part.reducer is None",
    ),
    Mutant(
        "horovod: a sum is the mean",
        TORCH + "synchronizer.py",
        "float(self.session.comm.size) if self.session.sums else 1.0",
        "1.0",
    ),
    Mutant(
        "loss: periods end at different steps",
        TORCH + "local_steps.py",
        '        self.done, self.since = given["local_steps"]\n',
        '        self.done = given["local_steps"][0]\n',
    ),
    Mutant(
        "loss: local steps that were not exchanged are dropped",
        TORCH + "local_steps.py",
        "[old + new.to(",
        "[old + 0 * new.to(",
    ),
    Mutant(
        "loss: a reducer forgets its velocity",
        "python/gtopk/_reducer_handle.py",
        "                self.set_velocity(segment, values[1])\n",
        "                pass\n",
    ),
    Mutant(
        "loss: half of the ranks are enough",
        ELASTIC,
        "len(self._ranks) // 2 + 1 if",
        "len(self._ranks) // 2 if",
    ),
    Mutant(
        "loss: processes that have ended are waited for",
        ROLL_CALL,
        "        except ConnectionRefusedError:\n            return True",
        "        except ConnectionRefusedError:\n            return False",
    ),
    Mutant(
        "loss: who has come and gone is counted",
        ROLL_CALL,
        "            if _is_over(link):\n",
        "            if False:\n",
    ),
    Mutant(
        "loss: another job is counted", ROLL_CALL, 'if said["job"] == self._job else None', "if self._job else None"
    ),
    Mutant(
        "loss: who is late is left out",
        ROLL_CALL,
        "while count.someone_is_late() and time",
        "while not count.came and time",
    ),
    # examples
    Mutant(
        "examples: the library's default density comes after the published warm-up",
        EXAMPLES + "recipe.py",
        "[] if options.density is None else _numbers(DENSITY_WARMUP)",
        "_numbers(DENSITY_WARMUP)",
    ),
    Mutant(
        "examples: a GPU that is not there is taken",
        EXAMPLES + "trainer.py",
        "if index >= count:",
        "if index < 0:",
    ),
    Mutant(
        "examples: training goes on with a loss that is not finite",
        EXAMPLES + "trainer.py",
        'if not math.isfinite(line["loss"]):',
        'if math.isfinite(line["loss"]) and line["loss"] < 0:',
    ),
    Mutant(
        "examples: classes of the test differ from those of training",
        EXAMPLES + "imagenet.py",
        "if train.classes != test.classes:",
        "if len(train.classes) != len(test.classes):",
    ),
    Mutant(
        "examples: runs of different lengths are compared",
        EXAMPLES + "report.py",
        ' if line["step"] <= max(common)]',
        "]",
    ),
    Mutant(
        "examples: an epoch is as long as that of the rank with the most batches",
        EXAMPLES + "trainer.py",
        "fewest = min(steps)",
        "fewest = max(steps)",
    ),
    Mutant(
        "examples: each rank stops by its own clock",
        EXAMPLES + "agree.py",
        "gtopk.broadcast_object(self._steps_to_the_next_look(), root_rank=0)",
        "self._steps_to_the_next_look()",
    ),
    Mutant(
        "examples: the time limit is looked at when all of it should have passed",
        EXAMPLES + "agree.py",
        "max(1, min(16, int(min(1.0, left / 2) / max(pace, 1e-6))))",
        "max(1, int(left / max(pace, 1e-6)))",
    ),
    Mutant(
        "examples: what fails on one rank ends that one alone",
        EXAMPLES + "agree.py",
        "if not failed:",
        "if not error:",
    ),
    Mutant(
        "examples: a run goes on without the optimizer's state",
        EXAMPLES + "checkpoint.py",
        'optimizer.load_state_dict(saved["optimizer"])',
        "del optimizer",
    ),
    Mutant(
        "examples: a text that is cut off is read", EXAMPLES + "text.py", "if not stream.eof:", "if stream.eof is None:"
    ),
    Mutant("examples: sound is read in the wrong order of bytes", EXAMPLES + "speech.py", 'min(">i2"', 'max(">i2"'),
    Mutant(
        "examples: what stands behind an utterance is heard",
        EXAMPLES + "deepspeech.py",
        "self.conv2(x * inside)",
        "self.conv2(x)",
    ),
]
