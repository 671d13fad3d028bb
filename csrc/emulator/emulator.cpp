#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

Device device;
int64_t matrix_loads = 0, matrix_conflicts = 0;

namespace {

unsigned seed = 7;

constexpr size_t kStack = 256 << 10;
constexpr int kMaxThreads = 1024;

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

struct Fibre {
  ucontext_t start;
  jmp_buf state;
  dim3 index;
  bool started, done, at_block_barrier;
  unsigned waits_for;  // lanes that must arrive before this one goes on; 0: it waits for none
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  unsigned arrived = 0;
  alignas(16) unsigned char shared[32][256];
};

std::vector<std::unique_ptr<Fibre>> fibres;
std::vector<Warp> warps;
std::vector<unsigned char> dynamic;
unsigned char* stacks = nullptr;
jmp_buf scheduler;
int current = -1, threads = 0;
const std::function<void()>* body;

void yield() {
  if (!_setjmp(fibres[current]->state)) _longjmp(scheduler, 1);
}

void enter() {
  (*body)();
  bool copied = fibres[current]->open.empty();
  for (const auto& group : fibres[current]->groups) copied = copied && group.empty();
  if (!copied) fail("a thread ended before its copies");
  fibres[current]->groups.clear();
  fibres[current]->done = true;
  _longjmp(scheduler, 1);
}

void resume(int i) {
  Fibre& fibre = *fibres[i];
  current = i;
  threadIdx = fibre.index;
  if (_setjmp(scheduler)) return;
  if (fibre.started) _longjmp(fibre.state, 1);
  fibre.started = true;
  setcontext(&fibre.start);
}

unsigned alive(int warp) {
  unsigned lanes = 0;
  for (int lane = 0; lane < 32 && 32 * warp + lane < threads; ++lane)
    lanes |= static_cast<unsigned>(!fibres[32 * warp + lane]->done) << lane;
  return lanes;
}

void prepare(int i) {
  while (static_cast<int>(fibres.size()) <= i) fibres.push_back(std::make_unique<Fibre>());
  Fibre& fibre = *fibres[i];
  fibre.started = fibre.done = fibre.at_block_barrier = false;
  fibre.waits_for = 0;
  fibre.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
  getcontext(&fibre.start);
  fibre.start.uc_stack.ss_sp = stacks + i * kStack;
  fibre.start.uc_stack.ss_size = kStack;
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, enter, 0);
}

void run_block(std::mt19937& random) {
  for (int i = 0; i < threads; ++i) prepare(i);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  for (bool finished = false; !finished;) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (int i : order) {
      Fibre& fibre = *fibres[i];
      if (fibre.done || fibre.at_block_barrier) continue;
      if (fibre.waits_for) {
        if (~alive(i / 32) & fibre.waits_for) fail("a warp waits for a thread that has ended");
        continue;
      }
      resume(i);
      moved = true;
    }
    finished = true;
    bool all_at_barrier = true;
    for (int i = 0; i < threads; ++i) {
      finished = finished && fibres[i]->done;
      all_at_barrier = all_at_barrier && (fibres[i]->done || fibres[i]->at_block_barrier);
    }
    if (all_at_barrier)
      for (int i = 0; i < threads; ++i) fibres[i]->at_block_barrier = false;
    else if (!moved)
      fail("the threads wait for one another");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, %u, %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x);
  std::abort();
}

void launch(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()>& kernel) {
  threads = static_cast<int>(block.x * block.y * block.z);
  if (threads < 1 || threads > kMaxThreads) fail("a block has 1 to 1024 threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) fail("the grid has no such size");
  if (dynamic_bytes > static_cast<size_t>(device.shared_per_block)) fail("more shared memory than the GPU has");
  if (!stacks)
    stacks = static_cast<unsigned char*>(
        mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  body = &kernel;
  gridDim = grid;
  blockDim = block;
  warps.assign((threads + 31) / 32, Warp{});
  std::mt19937 random(seed);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        dynamic.assign(dynamic_bytes + 128, 0xff);  // NaN: shared memory is not initialised
        run_block(random);
      }
}

unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(dynamic.data()) + 127) & ~uintptr_t{127});
}

int lane() { return current % 32; }

void block_barrier() {
  fibres[current]->at_block_barrier = true;
  yield();
}

// A wait of the lanes in `mask`: the last to arrive lets the others go by clearing what they wait for.
static void warp_barrier(unsigned mask) {
  if (!(mask >> lane() & 1)) fail("a thread is not in the mask of its own operation");
  const int warp = current / 32;
  const int first = 32 * warp;
  warps[warp].arrived |= 1u << lane();
  if ((warps[warp].arrived & mask) == mask) {
    warps[warp].arrived &= ~mask;
    for (int i = 0; i < 32 && first + i < threads; ++i)
      if (mask >> i & 1) fibres[first + i]->waits_for = 0;
    return;
  }
  fibres[current]->waits_for = mask;
  yield();
}

const unsigned char* share(unsigned mask, const void* value, size_t bytes) {
  if (bytes > 256) fail("a lane shares at most 256 bytes");
  // Lanes past the end of the block do not exist.
  const int missing = 32 * (current / 32) + 32 - threads;
  if (missing > 0) mask &= ~0u >> missing;
  if (bytes) std::memcpy(warps[current / 32].shared[lane()], value, bytes);
  warp_barrier(mask);
  return warps[current / 32].shared[0];
}

void release(unsigned mask) {
  const int missing = 32 * (current / 32) + 32 - threads;
  if (missing > 0) mask &= ~0u >> missing;
  warp_barrier(mask);
}

void together(void* mine, void (*work)(void* const* lanes)) {
  Warp& warp = warps[current / 32];
  if (32 * (current / 32) + 32 > threads) fail("a matrix operation of less than a warp");
  std::memcpy(warp.shared[lane()], &mine, sizeof(mine));
  if ((warp.arrived | 1u << lane()) == ~0u) {
    void* lanes[32];
    for (int i = 0; i < 32; ++i) std::memcpy(&lanes[i], warp.shared[i], sizeof(mine));
    work(lanes);
  }
  warp_barrier(~0u);
}

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
  fibres[current]->open.push_back({to, from, bytes, zeros});
}

void commit_copies() {
  fibres[current]->groups.push_back(std::move(fibres[current]->open));
  fibres[current]->open.clear();
}

void wait_copies(int groups_left) {
  auto& groups = fibres[current]->groups;
  for (; static_cast<int>(groups.size()) > groups_left; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
    }
}

}  // namespace emulator

extern "C" {

#define EXPORTED __attribute__((visibility("default")))

// The order in which threads run.
EXPORTED void pcssl_emulator_seed(unsigned value) { emulator::seed = value; }

EXPORTED void pcssl_emulator_device(int shared_per_block, int shared_per_processor, int processors) {
  emulator::device = {shared_per_block, shared_per_processor, processors};
}

// Turns that matrix loads took since the last call, and those that conflicts of banks added.
EXPORTED void pcssl_emulator_matrix_loads(int64_t* turns, int64_t* conflicts) {
  *turns = std::exchange(emulator::matrix_loads, 0);
  *conflicts = std::exchange(emulator::matrix_conflicts, 0);
}
}
