# Rules for layerpipe in your own Makefile:
#
#	include path/to/layerpipe.mk
#
#	all: golang.erofs golang.index.erofs app.erofs app.zinfo
#	golang.erofs golang.index.erofs: REF = golang:1.26
#
# X.erofs        the image that REF names, or the file X.ref, or the layer X.tar,
#                X.tar.gz, X.tgz, X.tar.zst or X.tar.xz; whole
# X.index.erofs  the same, metadata only: file data stays in the registry, or in
#                the layer (not of X.tar.xz, which cannot be read at an offset)
# X.zinfo        random access into X.tar.gz or X.tgz
#
# OCI_FETCH, TAR2EROFS and GZINDEX are the programs; OCI_FETCH_FLAGS
# (--plain-http, --platform linux/arm64), TAR2EROFS_FLAGS and GZINDEX_FLAGS go to
# them. All may be set for one target, as REF is above.
#
# make does not know when a tag moves in a registry: an image is fetched again
# when X.ref is newer than it, or it is not there. A digest never moves.

# A failure anywhere in a pipeline is the failure of its rule, and what a failed
# rule leaves behind is deleted, so that no later run takes half for the whole.
# make has these for a whole Makefile: they are in force for your rules as well.
SHELL := bash
.SHELLFLAGS := -e -o pipefail -c
.DELETE_ON_ERROR:

OCI_FETCH ?= oci-fetch
TAR2EROFS ?= tar2erofs
GZINDEX   ?= gzindex

layerpipe-ref   = $(if $(REF),'$(REF)',$(if $<,"$$(cat '$<')",$(error $@: nothing to make it from: set REF, or write $*.ref)))
layerpipe-fetch = $(OCI_FETCH) $(OCI_FETCH_FLAGS) $(layerpipe-ref)

# Of several rules make takes the one with the shortest stem, so index images
# come first; among those the first whose source is there.
define layerpipe-rules
%$(1): %.ref
	$$(layerpipe-fetch) | $$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@'

%$(1): %.tar
	$$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@' '$$<'

%$(1): %.tar.gz
	$$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@' '$$<'

%$(1): %.tgz
	$$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@' '$$<'

%$(1): %.tar.zst
	$$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@' '$$<'

%$(1): %.tar.xz
	$$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@' '$$<'

%$(1):
	$$(layerpipe-fetch) | $$(TAR2EROFS) $(2) $$(TAR2EROFS_FLAGS) '$$@'
endef

$(eval $(call layerpipe-rules,.index.erofs,-i))
$(eval $(call layerpipe-rules,.erofs,))

%.zinfo: %.tar.gz
	$(GZINDEX) $(GZINDEX_FLAGS) '$<' > '$@'

%.zinfo: %.tgz
	$(GZINDEX) $(GZINDEX_FLAGS) '$<' > '$@'
