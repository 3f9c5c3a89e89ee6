package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/layerpipe/layerpipe/cmd/internal/cli"
	"github.com/layerpipe/layerpipe/internal/peakmem"
	"github.com/layerpipe/layerpipe/internal/testimage"
	"github.com/layerpipe/layerpipe/internal/testregistry"
)

func TestMain(m *testing.M) {
	peakmem.Init()
	testscript.Main(m, map[string]func(){
		"oci-fetch": func() { cli.Main("oci-fetch", run) },
	})
}

// The scripts find these in their environment, or in their directory:
//
//	$REG        host:port of a registry, plain HTTP, with team/app of four layers, 0 and 2 the same
//	$LOCKED     the same with basic authentication, somebody and hunter2
//	$BROKEN     a registry whose blobs are served with a bit flipped
//	$CUT        a registry that drops every connection for a blob, always
//	$SHORT      a registry whose blobs are shorter than their manifest says
//	$MULTI      of team/app:multi's index: that image for linux/amd64 and another one for
//	            linux/s390x; $OTHER of the other one's manifest
//	$SIGNATURE  of what is attached to $DIGEST, $BESIDE to $MULTI
//	$DIGEST     of the image's manifest, $LAYER0 and so on of its layers
//	$CONFIG     of its config, $ZERO of nothing
//	auth.json   the credentials for $LOCKED, wrong.json wrong ones
//	image       the image's layout
func TestScripts(t *testing.T) {
	im := testimage.NewLayers(t, append(testimage.Repeated(testimage.Gzip), testimage.Repeated(testimage.Plain)[1])...)
	serve := func(change func(*testregistry.Registry)) string {
		r := testregistry.New()
		if err := r.AddLayout("team/app", im.Dir); err != nil {
			t.Fatal(err)
		}
		change(r)
		srv := httptest.NewServer(r)
		t.Cleanup(srv.Close)
		return strings.TrimPrefix(srv.URL, "http://")
	}
	blobFault := func(serve func(http.ResponseWriter, *http.Request, http.Handler)) func(*testregistry.Registry) {
		// The config passes, so that the layers are reached.
		match := func(req *http.Request) bool {
			return testregistry.Blobs(req) && !strings.Contains(req.URL.Path, im.Config.Digest.String())
		}
		return func(r *testregistry.Registry) { r.Inject(&testregistry.Fault{Match: match, Serve: serve}) }
	}
	var multi platforms
	env := map[string]string{
		"REG":    serve(func(r *testregistry.Registry) { multi = addPlatforms(r, im) }),
		"LOCKED": serve(func(r *testregistry.Registry) { r.Basic("somebody", "hunter2") }),
		"BROKEN": serve(blobFault(testregistry.Flip(50))),
		"SILENT": serve(blobFault(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) { <-req.Context().Done() })),
		"CUT":    serve(blobFault(testregistry.Cut(0))),
		"SHORT": serve(blobFault(func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
			http.ServeContent(w, req, "", time.Time{}, strings.NewReader("much too short"))
		})),
		"DIGEST": im.Manifest.Digest.String(),
		"CONFIG": im.Config.Digest.String(),
		"MULTI":  multi.index.Digest.String(), "OTHER": multi.other.Digest.String(),
		"SIGNATURE": multi.signature.Digest.String(), "BESIDE": multi.beside.Digest.String(),
		"ZERO": "sha256:" + strings.Repeat("0", 64),
		// Neither the user's credentials nor a proxy.
		"REGISTRY_AUTH_FILE": "", "DOCKER_AUTH_CONFIG": "", "DOCKER_CONFIG": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent",
		"XDG_RUNTIME_DIR": "/nonexistent", "HTTP_PROXY": "", "http_proxy": "",
	}
	for i, l := range im.Layers {
		env["LAYER"+strconv.Itoa(i)] = l.Digest.String()
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			for k, v := range env {
				e.Setenv(k, v)
			}
			for name, password := range map[string]string{"auth.json": "hunter2", "wrong.json": "hunter3"} {
				auth := base64.StdEncoding.EncodeToString([]byte("somebody:" + password))
				text := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, env["LOCKED"], auth)
				if err := os.WriteFile(filepath.Join(e.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			return os.CopyFS(filepath.Join(e.WorkDir, "image"), os.DirFS(im.Dir))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code, "digest": digestOf},
	})
}

// platforms are the manifests of an image for two platforms, and what is
// attached to it.
type platforms struct{ index, other, signature, beside ocispec.Descriptor }

func addPlatforms(r *testregistry.Registry, im *testimage.Image) (p platforms) {
	first := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: im.Manifest.Digest, Size: im.Manifest.Size,
		Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: im.Layers[:1]}
	m.SchemaVersion = 2
	m.Config = r.AddBlob("team/app", ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"s390x"}`))
	p.other = r.AddManifest("team/app", "", ocispec.MediaTypeImageManifest, m)
	p.other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{first, p.other}}
	x.SchemaVersion = 2
	p.index = r.AddManifest("team/app", "multi", ocispec.MediaTypeImageIndex, x)
	attach := func(kind string, to ocispec.Descriptor) ocispec.Descriptor {
		m.ArtifactType, m.Subject = kind, &to
		return r.AddManifest("team/app", "", ocispec.MediaTypeImageManifest, m)
	}
	p.signature, p.beside = attach("application/vnd.test.signature", first), attach("application/vnd.test.index", p.index)
	return p
}

// servePlatforms serves them from a registry that speaks plain HTTP.
func servePlatforms(t *testing.T, im *testimage.Image) (host string, p platforms) {
	t.Helper()
	r := testregistry.New()
	if err := r.AddLayout("team/app", im.Dir); err != nil {
		t.Fatal(err)
	}
	p = addPlatforms(r, im)
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), p
}

// code runs oci-fetch and checks its exit code; of a failure also that it said
// one line, wrote no secret, and left no file that begins with "out".
//
//	code 4 $REG/nosuch
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: code N [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec("oci-fetch", args[1:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if got != want {
		ts.Fatalf("exit code %d, want %d: %s", got, want, stderr)
	}
	if strings.Contains(stdout+stderr, "hunter") {
		ts.Fatalf("a credential was shown: %s", stderr)
	}
	if want == 0 {
		return
	}
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "oci-fetch: ") {
		ts.Fatalf("not one of our lines: %q", last)
	}
	for _, l := range lines[:len(lines)-1] {
		if !strings.Contains(l, "trying again in") {
			ts.Fatalf("more than one line: %q", stderr)
		}
	}
	list, err := os.ReadDir(ts.MkAbs("."))
	ts.Check(err)
	for _, e := range list {
		if strings.Contains(e.Name(), "out") && strings.Trim(e.Name(), ".") != "stdout" {
			ts.Fatalf("%s was left", e.Name())
		}
	}
}

// digestOf checks a file's digest; "stdout" is the last command's output.
//
//	digest stdout sha256:...
func digestOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: digest FILE DIGEST")
	}
	if got := digest.FromString(ts.ReadFile(args[0])); got.String() != args[1] {
		ts.Fatalf("%s has the digest %s, want %s", args[0], got, args[1])
	}
}
