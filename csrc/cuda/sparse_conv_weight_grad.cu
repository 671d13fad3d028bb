// The gradient of a convolution's weight: for each kernel offset, grad^T @ features over the pairs of rows that the
// offset connects.
//
// A block makes a tile of output by input channels of one offset over a run of output rows. It reads that run of the
// table, keeps the pairs that exist in a ring in shared memory, and gathers both rows of so many pairs at a time as
// fill a stage, some stages ahead of the tensor cores. Runs are cut by the shape of the problem alone, and their sums
// are added in order, so results do not change from run to run; that costs less than a twentieth of the gathering.
#include "kernels.h"
#include "sparse_conv.h"

namespace pcssl {
namespace {

constexpr int kRead = 512;         // rows of the table that a block reads at a time
constexpr int kRing = 2 * kRead;   // pairs in the ring: fewer than a stage's are left when more are read
constexpr int kReads = kRead / kConvThreads;

// Where piece `piece` of row `row` lies, of rows of `Pieces` pieces. The eight rows of a matrix load lie in all 32
// banks, and so do the four rows of eight numbers that a warp reads for TF32.
template <int Pieces>
__device__ __forceinline__ int place(int row, int piece) {
  if constexpr (Pieces % 8 == 0) return (row * Pieces + (piece ^ ((row & 3) << 1 | (row >> 2 & 1)))) * kPiece;
  else return (row * Pieces + (piece ^ (row >> 1 & 3))) * kPiece;
}

// The sums of a warp: M by N channels over the pairs of a stage, whose rows lie in memory as [pair][channel].
template <typename T, int M, int N>
struct WarpTile : WarpSums<T, M, N> {
  static constexpr int kStep = std::is_same_v<T, tf32> ? 8 : 16;  // pairs of one product
  static constexpr int kSize = sizeof(Stored<T>), kPer = kPiece / kSize;

  template <int Pieces>
  __device__ __forceinline__ static uint32_t number(const unsigned char* from, int pair, int channel) {
    const int at = place<Pieces>(pair, channel / kPer) + channel % kPer * kSize;
    return round_tf32(*reinterpret_cast<const uint32_t*>(from + at));
  }

  // `left` and `right` hold rows of LeftPieces and RightPieces; the warp's channels start at m and n.
  template <int Count, int LeftPieces, int RightPieces>
  __device__ __forceinline__ void multiply(const unsigned char* left, int m, const unsigned char* right, int n) {
    const int lane = threadIdx.x % 32;
#pragma unroll(std::is_same_v<T, tf32> ? 1 : Count / kStep)
    for (int k = 0; k < Count; k += kStep) {
      uint32_t a[M / 16][4], b[N / 16][4];
      if constexpr (std::is_same_v<T, tf32>) {  // matrix loads transpose 16-bit numbers only
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < M / 16; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r)
            a[i][r] = number<LeftPieces>(left, k + t + r / 2 * 4, m + 16 * i + g + r % 2 * 8);
#pragma unroll
        for (int j = 0; j < N / 16; ++j)
#pragma unroll
          for (int r = 0; r < 4; ++r)
            b[j][r] = number<RightPieces>(right, k + t + r % 2 * 4, n + 16 * j + g + r / 2 * 8);
      } else {
        const int low = lane % 8, q = lane / 8;
#pragma unroll
        for (int i = 0; i < M / 16; ++i)
          load_transposed(a[i], left + place<LeftPieces>(k + q / 2 * 8 + low, (m + 16 * i) / kPer + q % 2));
#pragma unroll
        for (int j = 0; j < N / 16; ++j)
          load_transposed(b[j], right + place<RightPieces>(k + q % 2 * 8 + low, (n + 16 * j) / kPer + q / 2));
      }
      this->add(a, b);
    }
  }
};

// The same on the CUDA cores: lanes are 8 by 4 groups of four channels.
template <int M, int N>
struct WarpTile<exact, M, N> {
  static constexpr int kRows = M / 8, kPairs = N / 8;
  static_assert(M == 32, "a lane has four rows");

  __device__ __forceinline__ static int row(int i) { return threadIdx.x % 8 * 4 + i; }
  __device__ __forceinline__ static int column(int j) { return j / 2 * 16 + threadIdx.x % 32 / 8 * 4 + j % 2 * 2; }
  __device__ __forceinline__ const float* pair(int i, int j) const { return sums[i] + 2 * j; }

  template <int Count, int LeftPieces, int RightPieces>
  __device__ __forceinline__ void multiply(const unsigned char* left, int m, const unsigned char* right, int n) {
#pragma unroll 4
    for (int k = 0; k < Count; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(left + place<LeftPieces>(k, (m + row(0)) / 4));
#pragma unroll
      for (int j = 0; j < kPairs; j += 2) {
        const float4 b = *reinterpret_cast<const float4*>(right + place<RightPieces>(k, (n + column(j)) / 4));
        add(0, j, a.x, b), add(1, j, a.y, b), add(2, j, a.z, b), add(3, j, a.w, b);
      }
    }
  }

  __device__ __forceinline__ void add(int i, int j, float a, const float4& b) {
    float* to = sums[i] + 2 * j;
    to[0] = fmaf(a, b.x, to[0]);
    to[1] = fmaf(a, b.y, to[1]);
    to[2] = fmaf(a, b.z, to[2]);
    to[3] = fmaf(a, b.w, to[3]);
  }

  float sums[kRows][2 * kPairs] = {};
};

struct Problem {
  const unsigned char* grad;      // [N_out, out_pieces] pieces
  const unsigned char* features;  // [N_in, in_pieces] pieces
  const int32_t* table;           // [K, N_out]
  float* sums;                    // [runs, C_out, K, C_in]
  int64_t rows, run;              // output rows, and those of a run
  int out_pieces, in_pieces, out, in, stages;
};

// The pairs (input row, output row) of one offset in a run of output rows, in order.
struct PairRing {
  const int32_t* table;  // of the offset
  int2* ring;
  int* counts;  // of the warps
  int64_t next, end;
  int head = 0, tail = 0;
  int32_t found[kReads];

  __device__ __forceinline__ int64_t row(int i) const {
    return next + threadIdx.x / 32 * (32 * kReads) + 32 * i + threadIdx.x % 32;
  }

  __device__ __forceinline__ void read() {
#pragma unroll
    for (int i = 0; i < kReads; ++i) found[i] = row(i) < end ? table[row(i)] : -1;
  }

  // Puts the rows read before into the ring and reads the next ones; all threads of the block together.
  __device__ __forceinline__ void append() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned there[kReads];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      there[i] = __ballot_sync(~0u, found[i] >= 0);
      count += __popc(there[i]);
    }
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    int at = tail;
    for (int other = 0; other < kConvThreads / 32; ++other) {
      if (other < warp) at += counts[other];
      tail += counts[other];
    }
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      if (found[i] >= 0)
        ring[(at + __popc(there[i] & ((1u << lane) - 1))) % kRing] = {found[i], static_cast<int>(row(i))};
      at += __popc(there[i]);
    }
    next += kRead;
    read();
    __syncthreads();
  }
};

template <typename T, int M, int N, int WarpM, int WarpN, int Blocks>
struct Shape {
  static constexpr int kSize = sizeof(Stored<T>);
  static constexpr int kPairs = 128 / kSize * (M == 32 ? 2 : 1);  // of a stage
  static constexpr int kLeft = M * kSize / kPiece, kRight = N * kSize / kPiece;
  static constexpr int kStage = kPairs * (kLeft + kRight) * kPiece;
  static constexpr int kRingBytes = kRing * static_cast<int>(sizeof(int2));
};

// Gathers `Pieces` pieces, from piece `first` on, of the rows of a stage's `Count` pairs, of which `count` exist.
// Side 0: their input rows, 1: their output rows.
template <int Count, int Pieces, int Side>
__device__ __forceinline__ void gather(unsigned char* to, const unsigned char* from, int width, int first,
                                       const int2* ring, int head, int count) {
#pragma unroll
  for (int i = 0; i < Count * Pieces / kConvThreads; ++i) {
    const int item = i * kConvThreads + threadIdx.x, pair = item / Pieces, piece = item % Pieces;
    const bool there = pair < count && first + piece < width;
    const int2 rows = ring[(head + pair) % kRing];
    const int64_t at = there ? static_cast<int64_t>(Side ? rows.y : rows.x) * width + first + piece : 0;
    copy_async(to + place<Pieces>(pair, piece), from + at * kPiece, there);
  }
}

template <typename T, int M, int N, int WarpM, int WarpN, int Blocks>
__global__ void __launch_bounds__(kConvThreads, Blocks) weight_gradient(const Problem p) {
  using S = Shape<T, M, N, WarpM, WarpN, Blocks>;
  static_assert(M / WarpM * (N / WarpN) == kConvThreads / 32);
  PCSSL_DYNAMIC_SHARED(shared);
  __shared__ int counts[kConvThreads / 32];

  const int in_tiles = (p.in + N - 1) / N;
  const int first_out = blockIdx.x / in_tiles * M, first_in = blockIdx.x % in_tiles * N;
  // The middle offset of an odd kernel has the most pairs, so it starts first.
  const int offsets = gridDim.y, offset = (blockIdx.y + offsets / 2) % offsets;
  const int warp = threadIdx.x / 32;
  const int m = warp % (M / WarpM) * WarpM, n = warp / (M / WarpM) * WarpN;

  const int64_t begin = blockIdx.z * p.run, limit = begin + p.run;
  PairRing pairs{p.table + offset * p.rows, reinterpret_cast<int2*>(shared + p.stages * S::kStage), counts, begin,
                 limit < p.rows ? limit : p.rows};
  pairs.read();

  WarpTile<T, WarpM, WarpN> tile;

  // Fills a stage; false if no pair is left.
  auto fill = [&](int stage) {
    while (pairs.tail - pairs.head < S::kPairs && pairs.next < pairs.end) pairs.append();
    const int left = pairs.tail - pairs.head, count = left < S::kPairs ? left : S::kPairs;
    if (count == 0) return false;
    unsigned char* to = shared + stage * S::kStage;
    gather<S::kPairs, S::kLeft, 1>(to, p.grad, p.out_pieces, first_out * S::kSize / kPiece, pairs.ring, pairs.head,
                                   count);
    gather<S::kPairs, S::kRight, 0>(to + S::kPairs * S::kLeft * kPiece, p.features, p.in_pieces,
                                    first_in * S::kSize / kPiece, pairs.ring, pairs.head, count);
    pairs.head += count;
    return true;
  };

  int filled = 0;
  for (int stage = 0; stage < p.stages - 1; ++stage) {
    filled += fill(stage);
    commit_copies();
  }
  int stage = 0, next = p.stages - 1;
  for (int done = 0; done < filled; ++done) {
    wait_copies(p.stages - 2);
    __syncthreads();  // the stage is here for all, and all are done with the one before
    filled += fill(next);
    commit_copies();
    const unsigned char* left = shared + stage * S::kStage;
    tile.template multiply<S::kPairs, S::kLeft, S::kRight>(left, m, left + S::kPairs * S::kLeft * kPiece, n);
    next = stage;
    stage = stage + 1 == p.stages ? 0 : stage + 1;
  }

  float* const sums = p.sums + static_cast<int64_t>(blockIdx.z) * p.out * offsets * p.in;
#pragma unroll
  for (int i = 0; i < tile.kRows; ++i) {
    const int out = first_out + m + tile.row(i);
    if (out >= p.out) continue;
    float* const row = sums + (static_cast<int64_t>(out) * offsets + offset) * p.in;
#pragma unroll
    for (int j = 0; j < tile.kPairs; ++j) {
      const int in = first_in + n + tile.column(j);
      if (in < p.in) store_pair(row + in, tile.pair(i, j)[0], tile.pair(i, j)[1], in + 1 < p.in, p.in % 2 == 0);
    }
  }
}

__global__ void add_runs(const float* __restrict__ sums,  // [runs, count]
                         int runs, int64_t count, float* __restrict__ result) {
  for (int64_t i = first_item(); i < count; i += item_step()) {
    float sum = 0;
    for (int run = 0; run < runs; ++run) sum += sums[run * count + i];
    result[i] = sum;
  }
}

template <typename T, int M, int N, int WarpM, int WarpN, int Blocks>
int run(Problem problem, int offsets, int runs, const Device& device, void* stream) {
  using S = Shape<T, M, N, WarpM, WarpN, Blocks>;
  problem.stages = stages_for(device, Blocks, S::kStage, S::kRingBytes + 64);
  const int bytes = problem.stages * S::kStage + S::kRingBytes;
  const int tiles = (problem.out + M - 1) / M * ((problem.in + N - 1) / N);
  constexpr auto kernel = weight_gradient<T, M, N, WarpM, WarpN, Blocks>;
  PCSSL_ALLOW_SHARED(kernel, bytes);
  PCSSL_LAUNCH(kernel, dim3(tiles, offsets, runs), kConvThreads, bytes, stream, problem);
  return launch_error();
}

template <typename T>
int choose(const Problem& problem, int offsets, int runs, void* stream) {
  const Device device = current_device();
  if constexpr (std::is_same_v<T, exact>) return run<T, 64, 64, 32, 32, 3>(problem, offsets, runs, device, stream);
  else {
    const int size = tile_channels(problem.in > problem.out ? problem.in : problem.out);
    if (size == 32) return run<T, 32, 32, 16, 16, 4>(problem, offsets, runs, device, stream);
    if (size == 64) return run<T, 64, 64, 32, 32, 3>(problem, offsets, runs, device, stream);
    if (size == 96) return run<T, 96, 96, 48, 48, 2>(problem, offsets, runs, device, stream);
    return run<T, 128, 128, 64, 64, 2>(problem, offsets, runs, device, stream);
  }
}

}  // namespace
}  // namespace pcssl

// Enough runs for some thousand blocks, each long enough for its sums to be worth writing, all sums together at most
// about 64 MB: of the shape alone, so that results do not depend on the GPU.
int pcssl_cuda_weight_gradient_runs(int64_t rows, int offsets, int out, int in) {
  using namespace pcssl;
  const int size = tile_channels(in > out ? in : out);
  const int64_t blocks = static_cast<int64_t>((out + size - 1) / size) * ((in + size - 1) / size) * offsets;
  const int64_t bytes = static_cast<int64_t>(out) * in * offsets * sizeof(float);
  int64_t runs = 2048 / blocks;
  if (runs > rows / 2048) runs = rows / 2048;
  if (runs > (64 << 20) / bytes) runs = (64 << 20) / bytes;
  return static_cast<int>(runs < 1 ? 1 : runs);
}

int pcssl_cuda_weight_gradient(const void* grad, const void* features, const int32_t* table, int64_t rows, int offsets,
                               int out_pieces, int in_pieces, int out, int in, int product, int runs, float* sums,
                               float* result, void* stream) {
  using namespace pcssl;
  const int64_t run = ((rows + runs - 1) / runs + kRead - 1) / kRead * kRead;
  const Problem problem{static_cast<const unsigned char*>(grad), static_cast<const unsigned char*>(features), table,
                        runs > 1 ? sums : result, rows, run, out_pieces, in_pieces, out, in, 0};
  const int code = product == kExact  ? choose<exact>(problem, offsets, runs, stream)
                   : product == kTf32 ? choose<tf32>(problem, offsets, runs, stream)
                   : product == kBf16 ? choose<bf16>(problem, offsets, runs, stream)
                                      : choose<fp16>(problem, offsets, runs, stream);
  if (code || runs == 1) return code;
  const int64_t count = static_cast<int64_t>(out) * offsets * in;
  PCSSL_LAUNCH(add_runs, blocks_for(count), kThreads, 0, stream, sums, runs, count, result);
  return launch_error();
}
