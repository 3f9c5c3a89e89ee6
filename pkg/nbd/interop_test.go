package nbd

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/layerpipe/layerpipe/internal/interop"
)

// oracle runs nbdkit on a file of the size that commandErrors wants.
func oracle(t *testing.T) (path string) {
	t.Helper()
	nbdkit := interop.Tool(t, "nbdkit")
	dir := t.TempDir()
	file, path := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, errorsSize); err != nil {
		t.Fatal(err)
	}
	interop.Listening(t, exec.Command(nbdkit, "-f", "-r", "-U", path, "file", file), path)
	return path
}

// TestErrorsAsNbdkit gives nbdkit what TestCommandErrors and TestOptions give
// us: the tables say what it does.
func TestErrorsAsNbdkit(t *testing.T) {
	path := oracle(t)
	for _, m := range []mode{simple, structured} {
		c := connect(t, path, m)
		for _, tt := range commandErrors(errorsSize) {
			if a := c.do(tt.r, make([]byte, tt.payload)); a.Errno != tt.want {
				t.Errorf("mode %d: %s: nbdkit gives %d, we %d", m, tt.name, a.Errno, tt.want)
			}
			c.check(make(mem, 4096), 8, 100)
		}
	}
	options(t, path, false, func(name string, want uint32, replies []optReply) {
		if got := replies[len(replies)-1].Type; got != want {
			t.Errorf("%s: nbdkit gives %#x, we %#x", name, got, want)
		}
	})
}

func uri(path string) string { return "nbd+unix:///?socket=" + path }

func TestNbdinfo(t *testing.T) {
	nbdinfo := interop.Tool(t, "nbdinfo")
	path := listen(t, &Server{Exports: []Export{{Name: "disk", Description: "of four sectors", Device: extents{pattern(2048)}}}})
	type export struct {
		Name        string `json:"export-name"`
		Description string
		Size        int64 `json:"export-size"`
		ReadOnly    bool  `json:"is_read_only"`
		MultiConn   bool  `json:"can_multi_conn"`
		Cache       bool  `json:"can_cache"`
		DF          bool  `json:"can_df"`
		Max         int64 `json:"block_size_maximum"`
		Contexts    []string
	}
	want := export{"disk", "of four sectors", 2048, true, true, true, true, MaxRead, []string{"base:allocation"}}
	for _, args := range [][]string{{"--json"}, {"--json", "--list"}} {
		out := interop.Run(t, append(append([]string{nbdinfo}, args...), uri(path))...)
		var got struct{ Exports []export }
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Exports) == 1 && got.Exports[0].Name == "" {
			got.Exports[0].Name = "disk" // asked for by the empty name
		}
		if !reflect.DeepEqual(got.Exports, []export{want}) {
			t.Errorf("%v: %+v, want %+v", args, got.Exports, want)
		}
	}
	got := strings.Fields(string(interop.Run(t, nbdinfo, "--map", uri(path))))
	words := strings.Fields("0 512 0 data 512 512 3 hole,zero 1024 512 0 data 1536 512 3 hole,zero")
	if !reflect.DeepEqual(got, words) {
		t.Errorf("map %v, want %v", got, words)
	}
	if got := strings.TrimSpace(string(interop.Run(t, nbdinfo, "--size", uri(path)))); got != "2048" {
		t.Errorf("size %s", got)
	}
}

// TestCopies lets every tool read the same disk, whose size is no multiple of
// a sector.
func TestCopies(t *testing.T) {
	dev := pattern(5<<20 + 1000)
	path := listen(t, &Server{Exports: []Export{{Device: dev}}})
	same := func(t *testing.T, file string, padded bool) {
		t.Helper()
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if padded && len(got) >= len(dev) && len(bytes.Trim(got[len(dev):], "\x00")) == 0 {
			got = got[:len(dev)]
		}
		if !bytes.Equal(got, dev) {
			t.Errorf("%d bytes, want %d, or other ones", len(got), len(dev))
		}
	}
	t.Run("nbdcopy", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out")
		interop.Run(t, interop.Tool(t, "nbdcopy"), uri(path), out)
		same(t, out, false)
	})
	t.Run("nbdfuse", func(t *testing.T) {
		same(t, interop.NbdFuse(t, uri(path)), false)
	})
	t.Run("qemu-img convert", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out")
		interop.Run(t, interop.Tool(t, "qemu-img"), "convert", "-f", "raw", "-O", "raw", uri(path), out)
		same(t, out, true)
		interop.Run(t, interop.Tool(t, "qemu-img"), "compare", "-f", "raw", "-F", "raw", uri(path), out)
	})
	t.Run("qemu-io", func(t *testing.T) {
		out := interop.Run(t, interop.Tool(t, "qemu-io"), "-r", "-f", "raw", "-c", "read -v 1000001 16", uri(path))
		want := "000f4241:  aa e7 e5 a5 aa e7 e1 a5"
		if !bytes.Contains(out, []byte(want)) || bytes.Contains(out, []byte("failed")) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	})
	t.Run("nbdkit nbd", func(t *testing.T) {
		nbdkit := interop.Tool(t, "nbdkit")
		out := filepath.Join(t.TempDir(), "out")
		interop.Run(t, nbdkit, "-U", "-", "nbd", "socket="+path, "--run", interop.Tool(t, "nbdcopy")+` "$uri" '`+out+`'`)
		same(t, out, false)
	})
	t.Run("fio", func(t *testing.T) {
		fio := interop.Tool(t, "fio")
		if out, err := exec.Command(fio, "--enghelp").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("nbd")) {
			interop.Missing(t, "fio was built without nbd: %v", err)
		}
		out := interop.Run(t, fio, "--name=x", "--ioengine=nbd", "--uri="+uri(path), "--rw=randread", "--bs=4k", "--iodepth=16", "--io_size=8m", "--size=5m", "--output-format=json")
		var got struct {
			Jobs []struct {
				Error int
				Read  struct {
					Bytes int64 `json:"io_bytes"`
				}
			}
		}
		if err := json.Unmarshal(out[bytes.IndexByte(out, '{'):], &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Jobs) != 1 || got.Jobs[0].Error != 0 || got.Jobs[0].Read.Bytes != 8<<20 {
			t.Errorf("%+v", got)
		}
	})
}

// TestNbdsh lets libnbd send what it would not unless it was told to: each
// command fails with its error, and the connection goes on.
func TestNbdsh(t *testing.T) {
	nbdsh := interop.Tool(t, "nbdsh")
	path := listen(t, &Server{Exports: []Export{{Device: extents{pattern(8192)}}}})
	script := `
import errno, os
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(os.environ["URI"])
good = h.pread(100, 4000)
def forbidden(name, f):
    try:
        f()
        print(name, "OK")
    except nbd.Error as e:
        print(name, errno.errorcode.get(e.errnum, e.errnum))
    assert h.pread(100, 4000) == good, name
ignore = lambda *_: 0
forbidden("write", lambda: h.pwrite(b"x" * 512, 0))
forbidden("write-past-end", lambda: h.pwrite(b"x" * 512, 8192))
forbidden("trim", lambda: h.trim(512, 0))
forbidden("zero", lambda: h.zero(512, 0))
forbidden("flush", lambda: h.flush())
forbidden("read-across-end", lambda: h.pread(512, 8000))
forbidden("read-past-end", lambda: h.pread(512, 1 << 40))
forbidden("read-at-top", lambda: h.pread(512, (1 << 64) - 256))
forbidden("read-too-long", lambda: h.pread(33 << 20, 0))
forbidden("read-unknown-flag", lambda: h.pread(512, 0, 1 << 12))
forbidden("read-fua", lambda: h.pread(512, 0, nbd.CMD_FLAG_FUA))
forbidden("read-df", lambda: h.pread_structured(512, 0, ignore, nbd.CMD_FLAG_DF))
forbidden("cache", lambda: h.cache(8192, 0))
forbidden("cache-past-end", lambda: h.cache(512, 8192))
forbidden("cache-nothing", lambda: h.cache(0, 0))
forbidden("status-past-end", lambda: h.block_status(512, 8192, ignore))
forbidden("status-nothing", lambda: h.block_status(0, 0, ignore))
h.shutdown()
`
	cmd := exec.Command(nbdsh, "-c", script)
	// It runs python3, and needs the one that it was installed for.
	cmd.Env = append(os.Environ(), "URI="+uri(path), "PATH=/usr/bin:"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nbdsh: %v: %s", err, out)
	}
	want := `write EPERM
write-past-end EPERM
trim EPERM
zero EPERM
flush EINVAL
read-across-end EINVAL
read-past-end EINVAL
read-at-top EINVAL
read-too-long EINVAL
read-unknown-flag EINVAL
read-fua EINVAL
read-df OK
cache OK
cache-past-end EINVAL
cache-nothing EINVAL
status-past-end EINVAL
status-nothing EINVAL
`
	if string(out) != want {
		t.Errorf("%s, want %s", out, want)
	}
}

// TestTLSClients: clients that know TLS from GnuTLS, with our CA.
func TestTLSClients(t *testing.T) {
	dev := pattern(300_000)
	cert, ca := certificate(t)
	s := &Server{Exports: []Export{{Device: dev}}, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(t.Context(), l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dir := tlsDir(t, ca)
	const copyTo = " $uri " // for a shell
	for name, command := range map[string]func(out string) []string{
		"nbdcopy": func(out string) []string {
			return []string{interop.Tool(t, "nbdcopy"), "nbds://localhost:" + port + "/?tls-certificates=" + dir, out}
		},
		"nbdkit nbd": func(out string) []string {
			return []string{interop.Tool(t, "nbdkit"), "-U", "-", "nbd", "hostname=localhost", "port=" + port, "tls=require", "tls-certificates=" + dir, "tls-verify=true",
				"--run", interop.Tool(t, "nbdcopy") + copyTo + out}
		},
		"qemu-img": func(out string) []string {
			return []string{interop.Tool(t, "qemu-img"), "convert", "--object", "tls-creds-x509,id=tls,endpoint=client,dir=" + dir,
				"--image-opts", "driver=nbd,host=localhost,port=" + port + ",tls-creds=tls", "-O", "raw", out}
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			interop.Run(t, command(out)...)
			got, err := os.ReadFile(out)
			if err != nil || len(got) < len(dev) || !bytes.Equal(got[:len(dev)], dev) || len(bytes.Trim(got[len(dev):], "\x00")) > 0 {
				t.Errorf("%v, or other bytes than were served: %d of %d", err, len(got), len(dev))
			}
		})
	}
	if out, err := exec.Command(interop.Tool(t, "nbdinfo"), "--size", "nbd://localhost:"+port+"/").CombinedOutput(); err == nil {
		t.Errorf("without TLS: %s", out)
	}
}
