package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/pkg/ociarchive"
)

// fetch runs the command in process and returns what it wrote.
func fetch(t *testing.T, args ...string) []byte {
	t.Helper()
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	var stdout, stderr bytes.Buffer
	env := &cli.Env{Name: "oci-fetch", Args: args, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
	if code := cli.Run(context.Background(), env, run); code != 0 {
		t.Fatalf("oci-fetch %q: exit code %d: %s", args, code, stderr.String())
	}
	return stdout.Bytes()
}

// TestOthersRead: what we write, other tools read unchanged.
func TestOthersRead(t *testing.T) {
	skopeo, umoci := interop.Tool(t, "skopeo"), interop.Tool(t, "umoci")
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	ref := interop.PushOCI(t, im.Ref(), interop.DockerRegistry(t), "team/app:v1")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }

	fetch(t, "--plain-http", "-o", at("a.tar"), ref)
	fetch(t, "--plain-http", "-o", "oci:"+at("layout"), ref)
	for _, from := range []string{"oci-archive:" + at("a.tar"), "oci-archive:" + at("a.tar") + ":v1", "oci:" + at("layout") + ":v1"} {
		raw := interop.Run(t, skopeo, "inspect", "--raw", from)
		if want := fetch(t, "--plain-http", "--manifest", ref); !bytes.Equal(raw, want) {
			t.Errorf("skopeo reads another manifest from %s:\n%s", from, raw)
		}
		// A copy looks at each layer.
		interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", from, "oci:"+at("copy")+":x")
	}
	// As docker's own archive it has the same image.
	fetch(t, "--plain-http", "--docker", "-o", at("docker.tar"), ref)
	for _, from := range []string{"docker-archive:" + at("docker.tar"), "docker-archive:" + at("docker.tar") + ":" + ref, "oci-archive:" + at("docker.tar") + ":v1"} {
		if config := interop.Run(t, skopeo, "inspect", "--raw", "--config", from); !bytes.Equal(config, fetch(t, "--config", im.Ref())) {
			t.Errorf("skopeo reads another config from %s:\n%s", from, config)
		}
		interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", from, "oci:"+at("copy")+":docker")
	}
	// Images are added to the layouts of others, and theirs to ours.
	interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", "--preserve-digests", "oci:"+at("layout")+":v1", "oci:"+at("layout")+":theirs")
	fetch(t, "--plain-http", "-o", "oci:"+at("copy")+":ours", ref)
	fetch(t, "--plain-http", "-o", "oci:"+at("layout")+":again", ref)
	for _, in := range []string{at("layout") + ":v1", at("layout") + ":theirs", at("layout") + ":again", at("copy") + ":x", at("copy") + ":ours"} {
		if raw := interop.Run(t, skopeo, "inspect", "--raw", "oci:"+in); !bytes.Equal(raw, fetch(t, "--manifest", "oci:"+in)) {
			t.Errorf("%s: skopeo reads another manifest:\n%s", in, raw)
		}
		interop.Run(t, umoci, "stat", "--image", in)
	}
	if os.Geteuid() == 0 {
		interop.Run(t, umoci, "unpack", "--image", at("layout")+":v1", at("bundle"))
	}
}

// TestReadsOthers: archives of skopeo, in both of its formats, and a Docker v2
// image, give the layers that we would write.
func TestReadsOthers(t *testing.T) {
	skopeo := interop.Tool(t, "skopeo")
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	dir := t.TempDir()
	copyTo := func(to string, options ...string) {
		args := append([]string{skopeo, "--insecure-policy", "copy", "--quiet"}, options...)
		interop.Run(t, append(args, im.Ref(), to)...)
	}
	want := layers(t, fetch(t, im.Ref()), "our own")
	oci, docker := filepath.Join(dir, "oci.tar"), filepath.Join(dir, "docker.tar")
	copyTo("oci-archive:"+oci+":v1", "--preserve-digests")
	copyTo("docker-archive:" + docker + ":example.com/app:v1")
	for _, name := range []string{oci, docker} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for how, got := range map[string][][]byte{
			name + " on a pipe":       layers(t, b, name),
			name + " through ourself": layers(t, fetch(t, "oci-archive:"+name), name),
		} {
			if len(got) != len(want) {
				t.Fatalf("%s: %d layers, want %d", how, len(got), len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("%s: layer %d differs", how, i)
				}
			}
		}
	}

	// A registry holds Docker's own manifests as well.
	host := interop.DockerRegistry(t)
	copyTo("docker://"+host+"/team/app:v2", "--format=v2s2", "--dest-tls-verify=false")
	archive := fetch(t, "--plain-http", host+"/team/app:v2")
	if got := layers(t, archive, "v2s2"); len(got) != len(want) {
		t.Errorf("docker v2: %d layers", len(got))
	}
	if m := fetch(t, "--plain-http", "--manifest", host+"/team/app:v2"); !bytes.Contains(m, []byte("vnd.docker.distribution.manifest.v2")) {
		t.Errorf("this is no Docker manifest: %s", m)
	}
	v2 := filepath.Join(dir, "v2.tar")
	if err := os.WriteFile(v2, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	interop.Run(t, skopeo, "--insecure-policy", "copy", "--quiet", "oci-archive:"+v2, "dir:"+filepath.Join(dir, "v2"))
}

// layers reads an archive from a pipe.
func layers(t *testing.T, archive []byte, how string) (list [][]byte) {
	t.Helper()
	a, err := ociarchive.NewReader(struct{ io.Reader }{bytes.NewReader(archive)}, ociarchive.ReaderOptions{})
	if err != nil {
		t.Fatalf("%s: %v", how, err)
	}
	defer a.Close()
	for {
		d, r, err := a.NextLayer()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %s: %v", how, d.Digest, err)
		}
		list = append(list, b)
	}
}

// TestClosedPipe: the reader of our output goes away; we end quietly, as other
// filters do.
func TestClosedPipe(t *testing.T) {
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Plain)...)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "oci-fetch")
	if err := os.Symlink(self, link); err != nil {
		t.Skipf("skipped: no symbolic links here: %v", err)
	}
	cmd := exec.Command(link, im.Ref())
	// testscript.Main runs the command that the program is called as.
	cmd.Args[0] = "oci-fetch"
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitPipe || stderr.Len() > 0 {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}
