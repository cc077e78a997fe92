// Convolution of feature maps on a CPU, called by XLA; see kernels/convolution.py.

#include "convolution.h"

namespace ffi = xla::ffi;

namespace attention {
namespace {

using Floats = ffi::Buffer<ffi::F32, 4>;

// Sizes of x [B, Y, X, C], the kernel [height, width, C, O] and y [B, rows, columns, O].
Maps maps(const int64_t* x, const int64_t* kernel, const int64_t* y, int64_t stride, int64_t top,
          int64_t left) {
  return {x[0], x[1], x[2], x[3], kernel[0], kernel[1], kernel[3], y[1], y[2], stride, top, left};
}

ffi::Error forward(ffi::ThreadPool pool, int64_t stride, int64_t top, int64_t left, Floats x,
                   Floats kernel, ffi::Result<Floats> y) {
  Maps m = maps(x.dimensions().begin(), kernel.dimensions().begin(), y->dimensions().begin(), stride,
                top, left);
  const long steps[] = {m.depth() * m.O, m.C * m.O, m.O, 1};
  Packed packed(pool, kernel.typed_data(), m.height, m.width, m.C, m.O, steps);
  convolve(pool, m, x.typed_data(), packed, y->typed_data());
  return ffi::Error::Success();
}

// The gradient of x.
ffi::Error by_map(ffi::ThreadPool pool, int64_t stride, int64_t top, int64_t left, Floats y,
                  Floats kernel, ffi::Result<Floats> x) {
  Maps m = maps(x->dimensions().begin(), kernel.dimensions().begin(), y.dimensions().begin(), stride,
                top, left);
  const float* weights = kernel.typed_data();
  if (stride == 1) {
    // A convolution with the flipped kernel.
    const long steps[] = {-m.depth() * m.O, -m.C * m.O, 1, m.O};
    Maps turned{m.B, m.rows, m.columns, m.O, m.height, m.width, m.C, m.Y, m.X, 1,
                m.height - 1 - top, m.width - 1 - left};
    const float* last = weights + ((m.height - 1) * m.width + m.width - 1) * m.C * m.O;
    Packed packed(pool, last, m.height, m.width, m.O, m.C, steps);
    convolve(pool, turned, y.typed_data(), packed, x->typed_data());
    return ffi::Error::Success();
  }
  // For each u a right factor [O, (v, c)].
  const long steps[] = {m.depth() * m.O, 0, 1, m.O};
  Packed packed(pool, weights, m.height, 1, m.O, m.depth(), steps);
  long block = std::max(1L, std::min(m.Y, m.B * m.Y / 16)), blocks = (m.Y + block - 1) / block;
  share(pool, m.B * blocks, [&](long item) {
    long first = item % blocks * block;
    scatter_block(m, y.typed_data(), packed, x->typed_data(), item / blocks, first,
                  std::min(block, m.Y - first));
  });
  return ffi::Error::Success();
}

// The gradient of the kernel.
ffi::Error by_kernel(ffi::ThreadPool pool, int64_t stride, int64_t top, int64_t left, Floats x,
                     Floats y, ffi::Result<Floats> kernel) {
  Maps m = maps(x.dimensions().begin(), kernel->dimensions().begin(), y.dimensions().begin(),
                stride, top, left);
  kernel_gradient(pool, m, x.typed_data(), y.typed_data(), kernel->typed_data());
  return ffi::Error::Success();
}

auto common() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("stride").Attr<int64_t>("top").Attr<int64_t>("left")
      .Arg<Floats>().Arg<Floats>();
}

}  // namespace
}  // namespace attention

XLA_FFI_DEFINE_HANDLER_SYMBOL(Convolution, attention::forward,
                              attention::common().Ret<attention::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolutionByMap, attention::by_map,
                              attention::common().Ret<attention::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolutionByKernel, attention::by_kernel,
                              attention::common().Ret<attention::Floats>());
