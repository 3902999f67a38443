# The documentation: the pages of docs/, and the reference from the docstrings and from gtopk.h, as HTML.

#: make docs             the user guide and the reference, in build/docs/index.html
docs: $(VENV)/.installed-run $(VENV)/.installed-docs
	@echo '  docs  $(BUILD)/docs'
	$(Q)$(VENV_PYTHON) -m sphinx -q -W --keep-going -d "$(BUILD)/docs-cache" docs "$(BUILD)/docs"

.PHONY: docs
