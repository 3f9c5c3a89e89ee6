package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
	"github.com/layerpipe/layerpipe/internal/testimage"
)

// makeIn runs make on a Makefile of the test's, which includes
// scripts/layerpipe.mk with our commands.
func makeIn(t *testing.T, dir, makefile string, args ...string) (string, error) {
	t.Helper()
	program := interop.Tool(t, "make")
	interop.Tool(t, "bash")
	text := "OCI_FETCH := " + tool("oci-fetch") + "\nTAR2EROFS := " + tool("tar2erofs") + "\nGZINDEX := " + tool("gzindex") + "\n" +
		makefile + "\ninclude " + filepath.Join(interop.RepoRoot(t), "scripts", "layerpipe.mk") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"-C", dir}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestMakeRules makes each kind of target that scripts/layerpipe.mk knows.
func TestMakeRules(t *testing.T) {
	dir := t.TempDir()
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	copyFile(t, im.Blob(0), filepath.Join(dir, "packed.tar.gz"))
	copyFile(t, im.Blob(0), filepath.Join(dir, "other.tgz"))
	if err := im.Tar(0, filepath.Join(dir, "plain.tar")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "image.ref"), []byte(im.Ref()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	targets := strings.Fields(`named.erofs named.index.erofs image.erofs image.index.erofs packed.erofs packed.index.erofs
		plain.erofs plain.index.erofs packed.zinfo other.zinfo other.erofs`)
	makefile := "named.erofs named.index.erofs: REF = " + im.Ref()
	if out, err := makeIn(t, dir, makefile, targets...); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	for _, target := range targets {
		if st, err := os.Stat(filepath.Join(dir, target)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", target, err)
		}
	}
	same := func(a, b string) {
		t.Helper()
		x, err := os.ReadFile(filepath.Join(dir, a))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(dir, b))
		if err != nil {
			t.Fatal(err)
		}
		if string(x) != string(y) {
			t.Errorf("%s and %s are the same image, and differ", a, b)
		}
	}
	same("named.erofs", "image.erofs")
	same("named.index.erofs", "image.index.erofs")
	same("packed.zinfo", "other.zinfo")
	out, err := makeIn(t, dir, makefile, append(targets, "--question")...)
	if err != nil {
		t.Errorf("make would make them again: %v\n%s", err, out)
	}
}

// TestMakeRulesFail wants a failed rule to fail make and to leave no file.
func TestMakeRulesFail(t *testing.T) {
	dir := t.TempDir()
	im := testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...)
	packed, err := os.ReadFile(im.Blob(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cut.tar.gz"), packed[:len(packed)-9], 0o644); err != nil {
		t.Fatal(err)
	}
	packed[len(packed)/2] ^= 1
	if err := os.WriteFile(im.Blob(1), packed, 0o644); err != nil {
		t.Fatal(err)
	}
	makefile := "bad.erofs bad.index.erofs: REF = " + im.Ref() +
		"\nnone.erofs: REF = oci:" + filepath.Join(dir, "nothing-here") +
		// An upstream that delivers everything and then fails: only pipefail sees it.
		"\nliar.erofs: OCI_FETCH = f() { " + tool("oci-fetch") + " \"$$@\"; return 1; }; f" +
		"\nliar.erofs: REF = " + testimage.NewLayers(t, testimage.Repeated(testimage.Gzip)...).Ref()
	for _, target := range []string{"bad.erofs", "bad.index.erofs", "none.erofs", "liar.erofs", "cut.erofs", "cut.index.erofs", "cut.zinfo", "unnamed.erofs"} {
		out, err := makeIn(t, dir, makefile, target)
		if err == nil {
			t.Errorf("make %s passed:\n%s", target, out)
		}
		if _, err := os.Lstat(filepath.Join(dir, target)); !os.IsNotExist(err) {
			t.Errorf("make %s failed, and left the file: %v\n%s", target, err, out)
		}
	}
}

// TestExample runs docs/example as it stands, in a copy of its surroundings.
func TestExample(t *testing.T) {
	program := interop.Tool(t, "make")
	interop.Tool(t, "bash")
	interop.Tool(t, "tar")
	root, top := interop.RepoRoot(t), t.TempDir()
	for _, dir := range []string{"scripts", "docs/example"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"scripts/layerpipe.mk", "docs/example/Makefile"} {
		copyFile(t, filepath.Join(root, name), filepath.Join(top, name))
	}
	if err := os.Symlink(binDir, filepath.Join(top, "bin")); err != nil {
		t.Fatal(err)
	}
	example := filepath.Join(top, "docs", "example")
	if out, err := exec.Command(program, "-C", example).CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	for _, name := range []string{"hello.erofs", "hello.index.erofs", "hello.zinfo"} {
		if _, err := os.Stat(filepath.Join(example, name)); err != nil {
			t.Error(err)
		}
	}
	if got := must(t, []string{tool("erofs-dump"), "--cat", filepath.Join(example, "hello.erofs"), "/etc/motd"}); string(got) != "hello\n" {
		t.Errorf("/etc/motd: %q", got)
	}
	if out, err := exec.Command(program, "-C", example, "clean").CombinedOutput(); err != nil {
		t.Fatalf("make clean: %v\n%s", err, out)
	}
	left, err := os.ReadDir(example)
	if err != nil || len(left) != 1 {
		t.Errorf("make clean left %v, %v", left, err)
	}
}

// TestDemo runs the demo on an image of a layout directory, as
// `make demo REF=...` does.
func TestDemo(t *testing.T) {
	im := testimage.New(t, testimage.Small)
	out := must(t, []string{"go", "run", "../demo", "-bin", binDir, "-ref", im.Ref()})
	for _, want := range []string{"whole.erofs", "index.erofs", "the same bytes as in whole.erofs", "All of it took"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
