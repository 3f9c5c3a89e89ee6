package registry

import (
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

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// hubKey is what docker keeps Docker Hub's credentials under.
const hubKey = "https://index.docker.io/v1/"

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
		f, err := readAuthFile(name)
		if err != nil {
			if !must && errors.Is(err, os.ErrNotExist) {
				continue
			}
			return credential{}, err
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
	if name == "" {
		name = os.Getenv("REGISTRY_AUTH_FILE")
	}
	if name != "" {
		return []string{name}, true
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

// readAuthFile reads the file of that name. That it cannot be read is a matter of
// authentication: no other try would change it, and it is not the image that is
// not there.
func readAuthFile(name string) (*authFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fault.ErrUnauthorized)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fault.ErrUnauthorized)
	}
	if len(b) > maxAuthFile {
		return nil, fmt.Errorf("%s: over %d bytes: %w", name, maxAuthFile, fault.ErrUnauthorized)
	}
	return parseAuthFile(b, name)
}

// parseAuthFile reads the content of the file of that name.
func parseAuthFile(b []byte, name string) (*authFile, error) {
	a := &authFile{name: name}
	if len(strings.TrimSpace(string(b))) == 0 {
		return a, nil
	}
	// Nothing of the content gets into the error.
	if json.Unmarshal(b, a) != nil {
		return nil, fmt.Errorf("%s is not valid JSON: %w", name, fault.ErrUnauthorized)
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
				return credential{}, fmt.Errorf("%s: the entry for %s is damaged: %w", f.name, key, fault.ErrUnauthorized)
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
	k = strings.TrimSuffix(k, "/")
	if hadScheme {
		k = strings.TrimSuffix(strings.TrimSuffix(k, "/v1"), "/v2")
	}
	host, rest, _ := strings.Cut(k, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if rest != "" {
		return host + "/" + rest
	}
	return host
}
