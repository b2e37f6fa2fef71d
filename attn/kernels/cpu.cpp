// The operators of ops.py for the CPU, float and bfloat16, NHWC and NCHW. Plain C functions: nothing of torch's C++ is needed.
//
// Sums run in float over 64 pixels (NCHW: 1024), then in double. Work is divided by shapes alone, so that results do not
// depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Index = int64_t;

struct BFloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float* target, float x) { *target = x; }

// To the nearest, ties to even; NaN stays NaN.
inline void store(BFloat16* target, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  target->bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

struct Shape {
  Index n, c, pixels;
};

constexpr Index kRun = 64;     // pixels whose sum is kept in float
constexpr Index kSpan = 1024;  // the same within one channel

// Pixels of a sample are cut into parts, so that a small batch keeps all threads busy.
inline Index parts_of(const Shape& s) { return s.n >= 8 ? 1 : std::min<Index>(8, (s.pixels + kRun - 1) / kRun); }

template <class Body>
void each_part(const Shape& s, int threads, const Body& body) {
  const Index parts = parts_of(s), items = s.n * parts;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index item = 0; item < items; ++item) {
    const Index n = item / parts, part = item % parts;
    body(n, item, s.pixels * part / parts, s.pixels * (part + 1) / parts);
  }
}

template <class Body>
void each_row(const Shape& s, int threads, const Body& body) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index row = 0; row < s.n * s.c; ++row) body(row, row % s.c);
}

// Adds the float sums of one run to the double sums, and clears them.
inline void flush(float* run, double* sums, Index c) {
  for (Index i = 0; i < c; ++i) {
    sums[i] += run[i];
    run[i] = 0.f;
  }
}

// Sums [N, parts, C] to [N, C], times a factor.
void gather(const Shape& s, const std::vector<double>& sums, float* out, double factor) {
  const Index parts = parts_of(s);
  for (Index n = 0; n < s.n; ++n)
    for (Index i = 0; i < s.c; ++i) {
      double sum = 0;
      for (Index part = 0; part < parts; ++part) sum += sums[(n * parts + part) * s.c + i];
      out[n * s.c + i] = static_cast<float>(sum * factor);
    }
}

template <class T>
void moments_nhwc(const T* y, const Shape& s, int threads, std::vector<double>& mean, std::vector<double>& variance) {
  const Index c = s.c, parts = parts_of(s);
  std::vector<double> sums(s.n * parts * c), squares(s.n * parts * c);
  each_part(s, threads, [&](Index n, Index item, Index begin, Index end) {
    std::vector<float> scratch(3 * c);
    float *__restrict origin = scratch.data(), *__restrict sum = origin + c, *__restrict square = sum + c;
    const T* sample = y + n * s.pixels * c;
    // Sums of differences from the first pixel: those of the values lose the variance where the mean is large.
    for (Index i = 0; i < c; ++i) origin[i] = load(sample[i]);
    for (Index start = begin; start < end; start += kRun) {
      const Index stop = std::min(end, start + kRun);
      Index p = start;
      for (; p + 4 <= stop; p += 4) {
        const T *__restrict a = sample + p * c, *__restrict b = a + c, *__restrict d = b + c, *__restrict e = d + c;
#pragma omp simd
        for (Index i = 0; i < c; ++i) {
          const float o = origin[i];
          const float u = load(a[i]) - o, v = load(b[i]) - o, w = load(d[i]) - o, x = load(e[i]) - o;
          sum[i] += (u + v) + (w + x);
          square[i] += (u * u + v * v) + (w * w + x * x);
        }
      }
      for (; p < stop; ++p) {
        const T* __restrict a = sample + p * c;
#pragma omp simd
        for (Index i = 0; i < c; ++i) {
          const float u = load(a[i]) - origin[i];
          sum[i] += u;
          square[i] += u * u;
        }
      }
      flush(sum, sums.data() + item * c, c);
      flush(square, squares.data() + item * c, c);
    }
  });
  for (Index n = 0; n < s.n; ++n)
    for (Index i = 0; i < c; ++i) {
      double sum = 0, square = 0;
      for (Index part = 0; part < parts; ++part) {
        sum += sums[(n * parts + part) * c + i];
        square += squares[(n * parts + part) * c + i];
      }
      const double shifted = sum / s.pixels;
      mean[n * c + i] = load(y[n * s.pixels * c + i]) + shifted;
      variance[n * c + i] = std::max(0.0, square / s.pixels - shifted * shifted);
      if (square != square) variance[n * c + i] = square;  // NaN, which max drops
    }
}

template <class T>
void moments_nchw(const T* y, const Shape& s, int threads, std::vector<double>& mean, std::vector<double>& variance) {
  each_row(s, threads, [&](Index row, Index) {
    const T* __restrict values = y + row * s.pixels;
    const float origin = load(values[0]);
    double sum = 0, square = 0;
    for (Index start = 0; start < s.pixels; start += kSpan) {
      const Index stop = std::min(s.pixels, start + kSpan);
      float u = 0, v = 0;
#pragma omp simd reduction(+ : u, v)
      for (Index p = start; p < stop; ++p) {
        const float x = load(values[p]) - origin;
        u += x;
        v += x * x;
      }
      sum += u;
      square += v;
    }
    const double shifted = sum / s.pixels, found = square / s.pixels - shifted * shifted;
    mean[row] = origin + shifted;
    variance[row] = found < 0 ? 0 : found;
  });
}

template <class T>
void moments(const T* y, const Shape& s, bool nhwc, int threads, float* mean, float* var, float* mu, float* sigma2) {
  std::vector<double> means(s.n * s.c), variances(s.n * s.c);
  (nhwc ? moments_nhwc<T> : moments_nchw<T>)(y, s, threads, means, variances);
  for (Index i = 0; i < s.c; ++i) {
    double centre = 0, spread = 0;
    for (Index n = 0; n < s.n; ++n) centre += means[n * s.c + i];
    centre /= s.n;
    for (Index n = 0; n < s.n; ++n) {
      const double off = means[n * s.c + i] - centre;
      spread += variances[n * s.c + i] + off * off;
    }
    mu[i] = static_cast<float>(centre);
    sigma2[i] = static_cast<float>(spread / s.n);
  }
  for (Index k = 0; k < s.n * s.c; ++k) {
    mean[k] = static_cast<float>(means[k]);
    var[k] = static_cast<float>(variances[k]);
  }
}

template <class T>
void moments_backward(const T* through, const T* y, const Shape& s, bool nhwc, int threads, const float* mean,
                      const float* mu, const float* dmean, const float* dvar, const float* dmu, const float* dsigma2,
                      T* dy) {
  std::vector<float> offset(s.n * s.c), slope(s.n * s.c);
  const float each = 1.f / static_cast<float>(s.pixels), share = 1.f / static_cast<float>(s.n);
  for (Index n = 0; n < s.n; ++n)
    for (Index i = 0; i < s.c; ++i) {
      const Index k = n * s.c + i;
      offset[k] = (dmean[k] + (dmu[i] + 2.f * dsigma2[i] * (mean[k] - mu[i])) * share) * each;
      slope[k] = 2.f * (dvar[k] + dsigma2[i] * share) * each;
    }
  if (nhwc) {
    const Index c = s.c;
    each_part(s, threads, [&](Index n, Index, Index begin, Index end) {
      const float *__restrict a = offset.data() + n * c, *__restrict b = slope.data() + n * c;
      const float* __restrict m = mean + n * c;
      for (Index p = begin; p < end; ++p) {
        const Index at = (n * s.pixels + p) * c;
        const T *__restrict g = through + at, *__restrict v = y + at;
        T* __restrict d = dy + at;
#pragma omp simd
        for (Index i = 0; i < c; ++i) store(d + i, load(g[i]) + a[i] + b[i] * (load(v[i]) - m[i]));
      }
    });
    return;
  }
  each_row(s, threads, [&](Index row, Index) {
    const float a = offset[row], b = slope[row], m = mean[row];
    const T *__restrict g = through + row * s.pixels, *__restrict v = y + row * s.pixels;
    T* __restrict d = dy + row * s.pixels;
#pragma omp simd
    for (Index p = 0; p < s.pixels; ++p) store(d + p, load(g[p]) + a + b * (load(v[p]) - m));
  });
}

// One pixel or one value: the affine map, the shortcut and ReLU.
template <bool kShortcut, bool kRelu, class T>
inline float ending(T y, float centre, float scale, float shift, const T* shortcut) {
  float v = (load(y) - centre) * scale + shift;
  if (kShortcut) v += load(*shortcut);
  return kRelu && v < 0.f ? 0.f : v;  // a NaN passes
}

template <bool kShortcut, bool kRelu, class T>
void affine(const T* y, const Shape& s, bool nhwc, int threads, const float* centre, const float* scale,
            const float* shift, Index step, const T* shortcut, T* out, float* pooled) {
  if (nhwc) {
    const Index c = s.c;
    std::vector<double> sums(pooled ? s.n * parts_of(s) * c : 0);
    each_part(s, threads, [&](Index n, Index item, Index begin, Index end) {
      std::vector<float> scratch(c);
      float* __restrict sum = scratch.data();
      const float *__restrict a = scale + n * step, *__restrict b = shift + n * step, *__restrict m = centre;
      for (Index start = begin; start < end; start += kRun) {
        const Index stop = std::min(end, start + kRun);
        for (Index p = start; p < stop; ++p) {
          const Index at = (n * s.pixels + p) * c;
          const T *__restrict v = y + at, *__restrict r = kShortcut ? shortcut + at : nullptr;
          T* __restrict o = out + at;
          if (pooled) {
#pragma omp simd
            for (Index i = 0; i < c; ++i) {
              const float value = ending<kShortcut, kRelu>(v[i], m[i], a[i], b[i], kShortcut ? r + i : nullptr);
              store(o + i, value);
              sum[i] += value;
            }
          } else {
#pragma omp simd
            for (Index i = 0; i < c; ++i)
              store(o + i, ending<kShortcut, kRelu>(v[i], m[i], a[i], b[i], kShortcut ? r + i : nullptr));
          }
        }
        if (pooled) flush(sum, sums.data() + item * c, c);
      }
    });
    if (pooled) gather(s, sums, pooled, 1.0 / s.pixels);
    return;
  }
  each_row(s, threads, [&](Index row, Index channel) {
    const Index at = row / s.c * step + channel;
    const float a = scale[at], b = shift[at], m = centre[channel];
    const T *__restrict v = y + row * s.pixels, *__restrict r = kShortcut ? shortcut + row * s.pixels : nullptr;
    T* __restrict o = out + row * s.pixels;
    double total = 0;
    for (Index start = 0; start < s.pixels; start += kSpan) {
      const Index stop = std::min(s.pixels, start + kSpan);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (Index p = start; p < stop; ++p) {
        const float value = ending<kShortcut, kRelu>(v[p], m, a, b, kShortcut ? r + p : nullptr);
        store(o + p, value);
        sum += value;
      }
      total += sum;
    }
    if (pooled) pooled[row] = static_cast<float>(total / s.pixels);
  });
}

template <bool kShortcut, bool kRelu, class T>
void affine_backward(const T* grad, const float* grad_pooled, const T* out, const T* y, const Shape& s, bool nhwc,
                     int threads, const float* centre, const float* scale, Index step, T* through, T* dshortcut,
                     float* dscale, float* dshift) {
  const float each = 1.f / static_cast<float>(s.pixels);
  if (nhwc) {
    const Index c = s.c;
    std::vector<double> scales(s.n * parts_of(s) * c), shifts(s.n * parts_of(s) * c);
    each_part(s, threads, [&](Index n, Index item, Index begin, Index end) {
      std::vector<float> scratch(3 * c);
      float *__restrict ds = scratch.data(), *__restrict dt = ds + c, *__restrict extra = dt + c;
      const float *__restrict a = scale + n * step, *__restrict m = centre;
      if (grad_pooled)
        for (Index i = 0; i < c; ++i) extra[i] = grad_pooled[n * c + i] * each;
      for (Index start = begin; start < end; start += kRun) {
        const Index stop = std::min(end, start + kRun);
        for (Index p = start; p < stop; ++p) {
          const Index at = (n * s.pixels + p) * c;
          const T *__restrict g = grad + at, *__restrict o = out + at, *__restrict v = y + at;
          T *__restrict d = through + at, *__restrict r = kShortcut ? dshortcut + at : nullptr;
#pragma omp simd
          for (Index i = 0; i < c; ++i) {
            const float masked = kRelu && load(o[i]) <= 0.f ? 0.f : load(g[i]) + extra[i];
            ds[i] += masked * (load(v[i]) - m[i]);
            dt[i] += masked;
            store(d + i, masked * a[i]);
            if (kShortcut) store(r + i, masked);
          }
        }
        flush(ds, scales.data() + item * c, c);
        flush(dt, shifts.data() + item * c, c);
      }
    });
    gather(s, scales, dscale, 1.0);
    gather(s, shifts, dshift, 1.0);
    return;
  }
  each_row(s, threads, [&](Index row, Index channel) {
    const float a = scale[row / s.c * step + channel], m = centre[channel];
    const float extra = grad_pooled ? grad_pooled[row] * each : 0.f;
    const Index at = row * s.pixels;
    const T *__restrict g = grad + at, *__restrict o = out + at, *__restrict v = y + at;
    T *__restrict d = through + at, *__restrict r = kShortcut ? dshortcut + at : nullptr;
    double scales = 0, shifts = 0;
    for (Index start = 0; start < s.pixels; start += kSpan) {
      const Index stop = std::min(s.pixels, start + kSpan);
      float ds = 0, dt = 0;
#pragma omp simd reduction(+ : ds, dt)
      for (Index p = start; p < stop; ++p) {
        const float masked = kRelu && load(o[p]) <= 0.f ? 0.f : load(g[p]) + extra;
        ds += masked * (load(v[p]) - m);
        dt += masked;
        store(d + p, masked * a);
        if (kShortcut) store(r + p, masked);
      }
      scales += ds;
      shifts += dt;
    }
    dscale[row] = static_cast<float>(scales);
    dshift[row] = static_cast<float>(shifts);
  });
}

template <class T>
void affine_any(const void* y, const Shape& s, bool nhwc, int threads, const float* centre, const float* scale,
                const float* shift, Index step, const void* shortcut, bool relu, void* out, float* pooled) {
  const auto run = shortcut ? (relu ? affine<true, true, T> : affine<true, false, T>)
                            : (relu ? affine<false, true, T> : affine<false, false, T>);
  run(static_cast<const T*>(y), s, nhwc, threads, centre, scale, shift, step, static_cast<const T*>(shortcut),
      static_cast<T*>(out), pooled);
}

template <class T>
void affine_backward_any(const void* grad, const float* grad_pooled, const void* out, const void* y, const Shape& s,
                         bool nhwc, int threads, const float* centre, const float* scale, Index step, bool relu,
                         void* through, void* dshortcut, float* dscale, float* dshift) {
  const auto run = dshortcut ? (relu ? affine_backward<true, true, T> : affine_backward<true, false, T>)
                             : (relu ? affine_backward<false, true, T> : affine_backward<false, false, T>);
  run(static_cast<const T*>(grad), grad_pooled, static_cast<const T*>(out), static_cast<const T*>(y), s, nhwc, threads,
      centre, scale, step, static_cast<T*>(through), static_cast<T*>(dshortcut), dscale, dshift);
}

}  // namespace

extern "C" {

void attn_moments(int bf16, int nhwc, int threads, Index n, Index c, Index pixels, const void* y, float* mean, float* var,
                  float* mu, float* sigma2) {
  const Shape s{n, c, pixels};
  if (bf16)
    moments(static_cast<const BFloat16*>(y), s, nhwc, threads, mean, var, mu, sigma2);
  else
    moments(static_cast<const float*>(y), s, nhwc, threads, mean, var, mu, sigma2);
}

void attn_moments_backward(int bf16, int nhwc, int threads, Index n, Index c, Index pixels, const void* through,
                           const void* y, const float* mean, const float* mu, const float* dmean, const float* dvar,
                           const float* dmu, const float* dsigma2, void* dy) {
  const Shape s{n, c, pixels};
  if (bf16)
    moments_backward(static_cast<const BFloat16*>(through), static_cast<const BFloat16*>(y), s, nhwc, threads, mean, mu,
                     dmean, dvar, dmu, dsigma2, static_cast<BFloat16*>(dy));
  else
    moments_backward(static_cast<const float*>(through), static_cast<const float*>(y), s, nhwc, threads, mean, mu, dmean,
                     dvar, dmu, dsigma2, static_cast<float*>(dy));
}

void attn_affine(int bf16, int nhwc, int threads, Index n, Index c, Index pixels, const void* y, const float* centre,
                 const float* scale, const float* shift, Index step, const void* shortcut, Index relu, void* out,
                 float* pooled) {
  (bf16 ? affine_any<BFloat16> : affine_any<float>)(y, Shape{n, c, pixels}, nhwc, threads, centre, scale, shift, step,
                                                    shortcut, relu, out, pooled);
}

void attn_affine_backward(int bf16, int nhwc, int threads, Index n, Index c, Index pixels, const void* grad,
                          const float* grad_pooled, const void* out, const void* y, const float* centre,
                          const float* scale, Index step, Index relu, void* through, void* dshortcut, float* dscale,
                          float* dshift) {
  (bf16 ? affine_backward_any<BFloat16> : affine_backward_any<float>)(grad, grad_pooled, out, y, Shape{n, c, pixels}, nhwc,
                                                                      threads, centre, scale, step, relu, through,
                                                                      dshortcut, dscale, dshift);
}
}
