package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestPodmanReads: podman loads an archive of ours, from a file and from a pipe
// and under the image's name, and has the layers that we have.
func TestPodmanReads(t *testing.T) {
	podman := interop.Tool(t, "podman")
	interop.Root(t)
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	ref := interop.PushOCI(t, im.Ref(), interop.DockerRegistry(t), "team/app:v1")
	dir := t.TempDir()
	archive := filepath.Join(dir, "a.tar")
	fetch(t, "--plain-http", "-o", archive, ref)
	// A storage of its own; vfs needs nothing of the kernel.
	run := []string{podman, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
		"--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	out := interop.Run(t, append(run, "load", "--quiet", "--input", archive)...)
	if !strings.Contains(string(out), ref) {
		t.Errorf("loaded as %q, want %s", out, ref)
	}
	got := string(interop.Run(t, append(run, "image", "inspect", "--format", "{{.Digest}} {{range .RootFS.Layers}}{{.}} {{end}}", ref)...))
	config := fetch(t, "--config", im.Ref())
	if !strings.HasPrefix(got, im.Manifest.Digest.String()+" ") {
		t.Errorf("podman has %s, want the manifest %s", got, im.Manifest.Digest)
	}
	for _, id := range strings.Fields(got)[1:] {
		if !bytes.Contains(config, []byte(id)) {
			t.Errorf("podman has the layer %s, which is not in %s", id, config)
		}
	}
	if n := len(strings.Fields(got)) - 1; n != len(im.Layers) {
		t.Errorf("podman has %d layers, want %d", n, len(im.Layers))
	}
}

// TestSkopeoReadsAll: skopeo copies all platforms out of an archive of ours, and
// then has the index and both images.
func TestSkopeoReadsAll(t *testing.T) {
	skopeo := interop.Tool(t, "skopeo")
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	host, p := servePlatforms(t, im)
	dir := t.TempDir()
	archive, layout := filepath.Join(dir, "a.tar"), filepath.Join(dir, "layout")
	fetch(t, "--plain-http", "--all-platforms", "-o", archive, host+"/team/app:multi")
	interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "oci-archive:"+archive+":multi", "oci:"+layout+":multi")
	if got := strings.TrimSpace(string(fetch(t, "--all-platforms", "--digest", "oci:"+layout))); got != p.index.Digest.String() {
		t.Errorf("skopeo has %s, want %s", got, p.index.Digest)
	}
	if got, want := fetch(t, "--list", "--all-platforms", "oci:"+layout), fetch(t, "--list", "--all-platforms", "oci-archive:"+archive); !bytes.Equal(got, want) {
		t.Errorf("skopeo has\n%s, want\n%s", got, want)
	}
}
