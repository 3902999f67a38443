// What a PyTorch that was built without CUDA lacks to have tensors on the stand-in for a GPU: a guard of devices and
// streams, memory, and views. All other operators are run by tests/python/torch_cuda.py. For tests only.
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>

extern "C" {
#include "support/cuda_standin.h"
}

namespace {

const standin_control_t *standin;

constexpr c10::DeviceIndex devices = 2;
thread_local c10::DeviceIndex current = 0;
thread_local int64_t streams[devices];
int event;

c10::Device device_of(c10::DeviceIndex index)
{
    return {c10::DeviceType::CUDA, index};
}

// Work of PyTorch's own is done when an operator returns, so its events have always passed.
struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
    c10::DeviceIndex deviceCount() const noexcept override { return devices; }
    c10::Device getDevice() const override { return device_of(current); }
    void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
    void setDevice(c10::Device device) const override { current = device.index(); }
    c10::Device exchangeDevice(c10::Device device) const override
    {
        const auto before = current;
        current = device.index();
        return device_of(before);
    }

    c10::Stream getStream(c10::Device device) const override
    {
        return c10::Stream(c10::Stream::UNSAFE, device, streams[device.index()]);
    }
    c10::Stream getDefaultStream(c10::Device device) const override
    {
        return c10::Stream(c10::Stream::UNSAFE, device, 0);
    }
    c10::Stream exchangeStream(c10::Stream stream) const override
    {
        const auto before = getStream(stream.device());
        streams[stream.device_index()] = stream.id();
        return before;
    }
    void synchronizeStream(const c10::Stream &) const override {}
    void synchronizeDevice(const c10::DeviceIndex) const override {}

    void record(void **out, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override
    {
        *out = &event;
    }
    void block(void *, const c10::Stream &) const override {}
    bool queryEvent(void *) const override { return true; }
    void synchronizeEvent(void *) const override {}
    void destroyEvent(void *, const c10::DeviceIndex) const noexcept override {}
    void recordDataPtrOnStream(const c10::DataPtr &, const c10::Stream &) const override {}
};

const Guard guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);

// For the logs of DistributedDataParallel.
struct Timer final : c10d::Timer {
    std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

std::unique_ptr<c10d::Timer> make_timer(c10::Device)
{
    return std::make_unique<Timer>();
}

void release(void *memory)
{
    standin->release(memory);
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override
    {
        void *memory = bytes > 0 ? standin->allocate(current, bytes) : nullptr;
        return {memory, memory, memory ? &release : &c10::detail::deleteNothing, device_of(current)};
    }
    void copy_data(void *, const void *, std::size_t) const override {}
};

Allocator allocator;

c10::DeviceIndex index_of(std::optional<c10::Device> device)
{
    return device && device->has_index() ? device->index() : current;
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>)
{
    const auto before = current;
    current = index_of(device);
    auto made = at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                  dtype.value_or(at::kFloat));
    current = before;
    return made;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format)
{
    const auto before = current;
    current = index_of(device);
    auto made = at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                          dtype.value_or(at::kFloat), format);
    current = before;
    return made;
}

} // namespace

namespace {

// What autograd asks: whether there is a device with streams.
struct Hooks final : at::CUDAHooksInterface {
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return devices; }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    c10::DeviceIndex current_device() const override { return current; }
    int getNumGPUs() const override { return devices; }
};

} // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library)
{
    library.impl("empty.memory_format", empty);
    library.impl("empty_strided", empty_strided);
    library.impl("as_strided", at::native::as_strided_tensorimpl);
    library.impl("view", at::native::view);
    library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
}

// Begins and, with NULL, ends.
extern "C" void torch_cuda_use(const standin_control_t *control)
{
    alignas(at::CUDAHooksInterface) static unsigned char kept[sizeof(at::CUDAHooksInterface)];
    // Importing torch has made PyTorch's hooks for a build without CUDA, and they are kept: these take their place.
    auto &hooks = const_cast<at::CUDAHooksInterface &>(at::detail::getCUDAHooks());
    static_assert(sizeof(Hooks) == sizeof kept);
    if (control) {
        if (!standin)
            c10d::TimerRegistry()->Register(c10::DeviceType::CUDA, make_timer);
        standin = control;
        std::memcpy(kept, &hooks, sizeof kept);
        new (&hooks) Hooks;
    } else {
        std::memcpy(static_cast<void *>(&hooks), kept, sizeof kept);
    }
}

extern "C" int torch_cuda_device(void)
{
    return current;
}

extern "C" void torch_cuda_set_device(int index)
{
    current = static_cast<c10::DeviceIndex>(index);
}

extern "C" int64_t torch_cuda_stream(int device)
{
    return streams[device];
}

extern "C" void torch_cuda_set_stream(int device, int64_t stream)
{
    streams[device] = stream;
}

// libtorch_cuda's, which the operators ask for the stream of their arguments.
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device, void **stream)
{
    *stream = reinterpret_cast<void *>(streams[device]);
    return 0;
}
