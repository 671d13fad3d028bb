// Moves points by a smooth field: vectors on a regular grid, read trilinearly.
#include <algorithm>
#include <array>

#include "tensors.h"

namespace pcssl {
namespace {

// points (N, 3); field (X, Y, Z, 3), every axis of two cells or more; low: (3,) place of its first vector.
Tensor displace(Tensor points, Tensor field, Tensor low, double spacing) {
  const float* from = read<float>(points, 2, "points");
  const float* vectors = read<float>(field, 4, "field");
  const float* first = read<float>(low, 1, "low");
  STD_TORCH_CHECK(points.size(1) == 3 && field.size(3) == 3 && low.size(0) == 3, "points, vectors and low have 3 axes");
  const std::array<int64_t, 3> size{field.size(0), field.size(1), field.size(2)};
  STD_TORCH_CHECK(*std::min_element(size.begin(), size.end()) >= 2, "field needs two cells or more along each axis");
  const int64_t rows = points.size(0), step[3] = {3 * size[1] * size[2], 3 * size[2], 3};
  const float scale = static_cast<float>(1 / spacing);
  Tensor result = make<float>(points, {rows, 3});
  float* to = write<float>(result);
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float* vector = vectors;
    float part[3];
    for (int a = 0; a < 3; ++a) {
      const float place = std::clamp((from[3 * i + a] - first[a]) * scale, 0.0f, static_cast<float>(size[a] - 1));
      const int64_t cell = std::min<int64_t>(static_cast<int64_t>(place), size[a] - 2);
      part[a] = place - static_cast<float>(cell);
      vector += cell * step[a];
    }
    for (int c = 0; c < 3; ++c) {
      const auto along_z = [&](int64_t at) { return vector[at + c] + part[2] * (vector[at + 3 + c] - vector[at + c]); };
      const auto along_y = [&](int64_t at) {
        const float near = along_z(at);
        return near + part[1] * (along_z(at + step[1]) - near);
      };
      const float near = along_y(0);
      to[3 * i + c] = from[3 * i + c] + near + part[0] * (along_y(step[0]) - near);
    }
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) { m.impl("displace", TORCH_BOX(&displace)); }

}  // namespace pcssl
