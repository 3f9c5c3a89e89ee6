package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// hubKey is what docker keeps Docker Hub's credentials under.
const hubKey = "https://index.docker.io/v1/"

// authVariable is where the environment may have the content of a config.json,
// as docker and CI systems know it.
const authVariable = "DOCKER_AUTH_CONFIG"

// maxAuthFile bounds a file of credentials.
const maxAuthFile = 1 << 20

// A credential is what somebody may have for a registry: a user and a password,
// or one of docker's two kinds of token.
type credential struct {
	Username, Password string
	RefreshToken       string // "identity token": a token server exchanges it
	AccessToken        string // "registry token": is sent as it is
}

// authFile is docker's config.json, and podman's auth.json with it.
type authFile struct {
	name  string
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// credential finds the credential for a repository: the one given, else the
// first one that the files have. An empty credential is no error.
func (o *Options) credential(ctx context.Context, ref Reference, notify func(string, ...any)) (credential, error) {
	if o.Username != "" {
		return credential{Username: o.Username, Password: o.Password}, nil
	}
	files, must := authFiles(o.AuthFile)
	for _, name := range files {
		f, err := o.readAuthFile(name)
		switch {
		case err == nil:
		case must:
			// No other try would change it, and it is not the image that is not
			// there.
			return credential{}, fmt.Errorf("%w: %w", err, fault.ErrUnauthorized)
		case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			continue
		default:
			// Another user's, after su, say. The image may be public: whether this
			// matters shows later.
			notify("credentials: %v", err)
			continue
		}
		cred, err := f.lookup(ctx, ref, notify)
		if err != nil || cred != (credential{}) {
			return cred, err
		}
	}
	return credential{}, nil
}

// authFiles is where credentials may be, in order; must says that the file was
// named and hence has to be there.
func authFiles(name string) (files []string, must bool) {
	if name = namedAuthFile(name); name != "" {
		return []string{name}, true
	}
	if os.Getenv(authVariable) != "" {
		files = append(files, "$"+authVariable)
	}
	if runtime.GOOS == "linux" {
		// Where podman login writes; the second one is root's without a session,
		// as cron's jobs have none.
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			files = append(files, filepath.Join(dir, "containers", "auth.json"))
		} else if os.Getuid() == 0 {
			files = append(files, "/run/containers/0/auth.json")
		}
	}
	home, err := os.UserHomeDir()
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	} else if err == nil {
		files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		files = append(files, filepath.Join(dir, "config.json"))
	} else if err == nil {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	return files, false
}

// namedAuthFile is the file of credentials that was named, "" if none was.
func namedAuthFile(name string) string { return cmp.Or(name, os.Getenv("REGISTRY_AUTH_FILE")) }

// takeAuthPipe reads the file of credentials if it was named and is a pipe, as
// the shell's <(command) is. That gives what it has once, and it will be asked
// for again when a token expires, and for each mirror.
func (o *Options) takeAuthPipe() {
	name := namedAuthFile(o.AuthFile)
	if name == "" || o.Username != "" {
		return
	}
	if st, err := os.Stat(name); err != nil || st.Mode().IsRegular() || st.IsDir() {
		return
	}
	b, err := readAuthBytes(name)
	o.authPipe = &authPipe{b, err}
}

// authPipe is what a pipe with credentials gave.
type authPipe struct {
	b   []byte
	err error
}

func (o *Options) readAuthFile(name string) (*authFile, error) {
	var b []byte
	var err error
	switch {
	case o.authPipe != nil:
		b, err = o.authPipe.b, o.authPipe.err
	case name == "$"+authVariable:
		b = []byte(os.Getenv(authVariable))
	default:
		b, err = readAuthBytes(name)
	}
	if err != nil {
		return nil, err
	}
	return parseAuthFile(b, name)
}

func readAuthBytes(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
	if err == nil && len(b) > maxAuthFile {
		err = fmt.Errorf("%s: over %d bytes", name, maxAuthFile)
	}
	return b, err
}

// parseAuthFile reads the content of the file of that name.
func parseAuthFile(b []byte, name string) (*authFile, error) {
	a := &authFile{name: name}
	if len(strings.TrimSpace(string(b))) == 0 {
		return a, nil
	}
	// Nothing of the content gets into the error.
	if json.Unmarshal(b, a) != nil {
		return nil, fmt.Errorf("%s is not valid JSON", name)
	}
	return a, nil
}

// lookup asks the helper for the registry, then the store for all, then the
// file itself.
func (f *authFile) lookup(ctx context.Context, ref Reference, notify func(string, ...any)) (credential, error) {
	servers := []string{ref.Domain}
	if ref.Domain == "docker.io" {
		servers = []string{hubKey, ref.Domain} // what docker login calls it, and podman login
	}
	for _, helper := range []string{f.helper(ref.Domain), f.CredsStore} {
		if helper == "" {
			continue
		}
		if strings.ContainsAny(helper, `/\`) {
			return credential{}, fmt.Errorf("%s: credential helper with a path for a name: %w", f.name, fault.ErrUnauthorized)
		}
		for _, server := range servers {
			limited, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("no answer in %s", helperTime))
			cred, err := askHelper(limited, helper, server, notify)
			cancel()
			if err != nil {
				// The image may be public: whether this matters shows later.
				notify("docker-credential-%s, which %s names, gave no credential for %s: %v", helper, f.name, ref.Domain, err)
				break
			}
			if cred != (credential{}) {
				return cred, nil
			}
		}
	}
	return f.entry(ref)
}

// helper is the helper of one registry.
func (f *authFile) helper(domain string) string {
	if h := f.CredHelpers[domain]; h != "" {
		return h
	}
	if domain == "docker.io" {
		for _, key := range []string{"index.docker.io", hubKey, "registry-1.docker.io"} {
			if h := f.CredHelpers[key]; h != "" {
				return h
			}
		}
	}
	return ""
}

// entry finds the entry of auths that is the most specific: podman's keys may
// name a repository or a part of its path, docker's are hosts, with or without
// a scheme.
func (f *authFile) entry(ref Reference) (credential, error) {
	for want := ref.Domain + "/" + ref.Repository; want != "."; want = pathDir(want) {
		var keys []string
		for k := range f.Auths {
			if normalKey(k) == want {
				keys = append(keys, k)
			}
		}
		if len(keys) == 0 {
			continue
		}
		// The plain spelling wins; beyond that, any order that is always the same.
		slices.Sort(keys)
		key := keys[0]
		if slices.Contains(keys, want) {
			key = want
		}
		e := f.Auths[key]
		cred := credential{Username: e.Username, Password: e.Password, RefreshToken: e.IdentityToken, AccessToken: e.RegistryToken}
		if e.Auth != "" {
			b, err := base64.StdEncoding.DecodeString(e.Auth)
			user, password, ok := strings.Cut(string(b), ":")
			if err != nil || !ok {
				return credential{}, fmt.Errorf("%s: the entry for %s is damaged: %w", f.name, want, fault.ErrUnauthorized)
			}
			cred.Username, cred.Password = user, strings.TrimRight(password, "\x00")
		}
		if cred != (credential{}) {
			return cred, nil
		}
	}
	return credential{}, nil
}

// pathDir is the path without its last part, "." if it has only one.
func pathDir(s string) string {
	if i := strings.LastIndexByte(s, '/'); i > 0 {
		return s[:i]
	}
	return "."
}

// normalKey brings the keys that docker has used over the years to one form.
func normalKey(k string) string {
	k, hadScheme := strings.CutPrefix(k, "https://")
	if !hadScheme {
		k, hadScheme = strings.CutPrefix(k, "http://")
	}
	host, rest, _ := strings.Cut(strings.TrimSuffix(k, "/"), "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
		if rest == "v1" || rest == "v2" {
			rest = "" // an API's, nobody's images
		}
	}
	if hadScheme {
		rest = "" // docker has addresses for keys, and heeds their hosts alone
	}
	if rest != "" {
		return host + "/" + rest
	}
	return host
}
