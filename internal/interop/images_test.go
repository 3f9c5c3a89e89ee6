package interop_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// TestDockerRegistry pushes an image and looks at what arrived.
func TestDockerRegistry(t *testing.T) {
	skopeo := interop.Tool(t, "skopeo")
	im := testimage.NewLayers(t, testimage.Repeated(testimage.ZstdFrames)...)
	ref := interop.PushOCI(t, im.Ref(), interop.DockerRegistry(t), "team/aba:v1")
	raw := interop.Run(t, skopeo, "inspect", "--raw", "--tls-verify=false", "docker://"+ref)
	for _, l := range im.Layers {
		if !bytes.Contains(raw, []byte(l.Digest)) {
			t.Errorf("the registry's manifest lacks %s:\n%s", l.Digest, raw)
		}
	}
}

// TestUmoci looks at a few of the things that an upper layer does.
func TestUmoci(t *testing.T) {
	root := interop.Umoci(t, testimage.New(t, testimage.Small).Ref())
	if _, err := os.Lstat(filepath.Join(root, "etc/motd")); !os.IsNotExist(err) {
		t.Errorf("etc/motd should have been deleted: %v", err)
	}
	got, err := os.ReadFile(filepath.Join(root, "usr/bin/newtool"))
	if err != nil || !strings.Contains(string(got), "echo new") {
		t.Errorf("usr/bin/newtool: %q, %v", got, err)
	}
	if st, err := os.Lstat(filepath.Join(root, "tmp")); err != nil || st.Mode()&os.ModeSticky == 0 {
		t.Errorf("tmp lost its sticky bit: %v, %v", st, err)
	}
}
