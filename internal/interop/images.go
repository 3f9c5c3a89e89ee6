package interop

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// listening finds the address in a registry's log.
var listening = regexp.MustCompile(`listening on ([0-9.]+:[0-9]+)`)

// DockerRegistry runs Debian's docker-registry on a port of its own choice,
// until the test ends, and returns its HOST:PORT. It speaks plain HTTP, and
// wants no authentication unless lines for its configuration file say so.
func DockerRegistry(t testing.TB, config ...string) string {
	t.Helper()
	return runRegistry(t, Tool(t, "docker-registry"), config)
}

// Distribution builds the release of distribution that internal/distribution
// pins, and returns what DockerRegistry is for docker-registry.
func Distribution(t testing.TB) func(t testing.TB, config ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "distribution")
	build := exec.Command(Tool(t, "go"), "build", "-o", program, ".")
	build.Dir = filepath.Join(RepoRoot(t), "internal", "distribution")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		Missing(t, "internal/distribution cannot be built here: %v: %s", err, out)
	}
	return func(t testing.TB, config ...string) string {
		t.Helper()
		return runRegistry(t, program, config)
	}
}

// runRegistry runs docker-registry or its successor, which share a
// configuration and a log.
func runRegistry(t testing.TB, program string, config []string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: \"127.0.0.1:0\"}\n", filepath.Join(dir, "data"))
	text += strings.Join(config, "\n")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", file)
	// Variables that begin like this override the configuration; one of them,
	// REGISTRY_AUTH_FILE, means quite another thing to clients.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "REGISTRY_") })
	cmd.Env = append(cmd.Env, "OTEL_TRACES_EXPORTER=none")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		defer close(addr)
		said := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil && !said {
				addr <- m[1]
				said = true
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-drained
		cmd.Wait()
	})
	select {
	case a, ok := <-addr:
		if !ok {
			t.Fatalf("%s ended before it listened", filepath.Base(program))
		}
		return a
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not listen", filepath.Base(program))
		return ""
	}
}

// PushOCI copies an image out of an OCI layout ("oci:DIR:TAG") into a
// plain-HTTP registry, byte for byte, and returns its reference there. Further
// arguments are options of skopeo copy.
func PushOCI(t testing.TB, ref, host, repository string, options ...string) string {
	t.Helper()
	to := host + "/" + repository
	args := append([]string{Tool(t, "skopeo"), "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"}, options...)
	Run(t, append(args, ref, "docker://"+to)...)
	return to
}

// Umoci unpacks an image of an OCI layout ("oci:DIR:TAG") with umoci, as root,
// and returns the directory of its root file system. umoci reads gzip and
// plain layers.
func Umoci(t testing.TB, ref string) string {
	t.Helper()
	Root(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	Run(t, Tool(t, "umoci"), "unpack", "--image", strings.TrimPrefix(ref, "oci:"), bundle)
	return filepath.Join(bundle, "rootfs")
}
