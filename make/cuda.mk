# The CUDA kernels: compiled by NVRTC, which PyPI has (requirements/cuda.txt), and embedded in the library.
#
# CUDA=0 does without them. CUDA=1 makes it an error when they cannot be had. Otherwise the build says so and goes on:
# the library then knows no GPU. NVRTC= names a libnvrtc.so of 12.x to use in place of PyPI's.

CUDA         ?= auto
CUDA_IMAGES  := $(BUILD)/cuda/images.c
CUDA_SOURCES := $(wildcard csrc/device/cuda/*.cu csrc/device/cuda/*.h)

# Changes when the setting does, and then the images are made anew.
$(BUILD)/cuda/setting.txt: FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA) $(NVRTC)' | cmp -s - $@ || echo '$(CUDA) $(NVRTC)' >$@

# A make of its own gets the environment ready, so that its failure is not the end of this one.
$(CUDA_IMAGES): $(BUILD)/cuda/setting.txt $(CUDA_SOURCES) csrc/device/device.h csrc/util/status.h \
    $(wildcard csrc/wire/*.h) include/gtopk.h scripts/cuda_images.py requirements/cuda.txt
	@NVRTC="$(NVRTC)" scripts/cuda_images.sh "$(CUDA)" $@ "$(CACHE)/cuda" "$(VENV)" $(MAKE) --no-print-directory \
	    VENV="$(VENV)" CACHE="$(CACHE)" PYTHON="$(PYTHON)"

$(BUILD)/cuda/images.o: $(CUDA_IMAGES)
	@$(if $(V),,echo "  cc    $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
