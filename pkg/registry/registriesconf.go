package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Bounds on what a configuration may make us keep and try.
const (
	maxRegistries = 4096 // of one file
	maxPlaces     = 16   // mirrors of one registry
)

// registriesConf is containers-registries.conf(5), version 2, as far as it
// concerns pulling: podman's, skopeo's and buildah's configuration.
type registriesConf struct {
	Registries []confRegistry    `toml:"registry"`
	Aliases    map[string]string `toml:"aliases"`
	// Version 1 had a table of this name. It is refused: what it blocked must
	// not be fetched because nobody reads it any more.
	V1 toml.Primitive `toml:"registries"`
}

type confRegistry struct {
	Prefix             string       `toml:"prefix"`
	Location           string       `toml:"location"`
	Insecure           bool         `toml:"insecure"`
	Blocked            bool         `toml:"blocked"`
	MirrorByDigestOnly bool         `toml:"mirror-by-digest-only"`
	Mirrors            []confMirror `toml:"mirror"`
}

type confMirror struct {
	Location       string `toml:"location"`
	Insecure       bool   `toml:"insecure"`
	PullFromMirror string `toml:"pull-from-mirror"`
}

// registriesConf reads the configuration: the file that is named, else the
// user's or the system's, and what is in the directories beside them. A file
// that is named has to be there.
func (o *Options) registriesConf() (*registriesConf, error) {
	name, must := o.RegistriesConf, true
	if name == "" {
		name = os.Getenv("CONTAINERS_REGISTRIES_CONF")
	}
	var dirs []string
	if name != "" {
		dirs = []string{name + ".d"}
	} else {
		name, must = "/etc/containers/registries.conf", false
		dirs = []string{name + ".d"}
		if dir, err := os.UserConfigDir(); err == nil {
			// The user's main file replaces the system's; its directory adds.
			own := filepath.Join(dir, "containers", "registries.conf")
			if _, err := os.Stat(own); err == nil {
				name = own
			}
			dirs = append(dirs, own+".d")
		}
	}
	all := &registriesConf{Aliases: make(map[string]string)}
	if err := all.read(name); err != nil && (must || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	for _, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.conf"))
		if err != nil {
			return nil, err
		}
		for _, name := range names { // Glob sorts them
			if err := all.read(name); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// escapeGlob makes a pattern of a directory's name.
func escapeGlob(s string) string {
	if filepath.Separator == '\\' {
		return s // no escapes there, and hardly a '[' either
	}
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// read adds one file.
func (c *registriesConf) read(name string) error {
	var f registriesConf
	md, err := readToml(name, &f)
	if err != nil {
		return err
	}
	if md.IsDefined("registries") {
		return fmt.Errorf("%s: version 1 of registries.conf: %w", name, fault.ErrUnsupported)
	}
	return c.add(&f, name)
}

// add takes over the entries of a file. They replace those of the same prefix
// or alias that were there before.
func (c *registriesConf) add(f *registriesConf, name string) error {
	if len(f.Registries) > maxRegistries {
		return fault.Usagef("%s: %d registries, over %d", name, len(f.Registries), maxRegistries)
	}
	for _, r := range f.Registries {
		if r.Prefix == "" {
			r.Prefix = r.Location
		}
		if err := r.check(); err != nil {
			return fault.Usagef("%s: registry %q: %v", name, redact(r.Prefix), err)
		}
		c.Registries = slices.DeleteFunc(c.Registries, func(old confRegistry) bool { return old.Prefix == r.Prefix })
		c.Registries = append(c.Registries, r)
	}
	maps.Copy(c.Aliases, f.Aliases)
	return nil
}

// check refuses an entry that does not mean anything.
func (r *confRegistry) check() error {
	wild, isWild := strings.CutPrefix(r.Prefix, "*.")
	switch {
	case r.Prefix == "":
		return errors.New("neither a prefix nor a location")
	case isWild && (wild == "" || strings.ContainsAny(wild, "/*")), !isWild && strings.Contains(r.Prefix, "*"):
		return errors.New("* stands for the first parts of a host's name")
	case r.Location == "" && !isWild && len(r.Mirrors) == 0 && !r.Blocked && !r.Insecure:
		return errors.New("no location")
	case strings.Contains(r.Location, "://"):
		return errors.New("the location has a scheme")
	case len(r.Mirrors) > maxPlaces:
		return fmt.Errorf("%d mirrors, over %d", len(r.Mirrors), maxPlaces)
	}
	for _, m := range r.Mirrors {
		switch {
		case m.Location == "":
			return errors.New("a mirror has no location")
		case strings.Contains(m.Location, "://"):
			return errors.New("a mirror's location has a scheme")
		case !slices.Contains([]string{"", "all", "digest-only", "tag-only"}, m.PullFromMirror):
			return fmt.Errorf("pull-from-mirror is %q", m.PullFromMirror)
		case m.PullFromMirror != "" && r.MirrorByDigestOnly:
			return errors.New("pull-from-mirror and mirror-by-digest-only exclude each other")
		}
	}
	return nil
}

// alias replaces a short name by what it stands for, if it does.
func (c *registriesConf) alias(s string) (string, bool) {
	name, rest, ok := shortName(s)
	full := c.Aliases[name]
	if !ok || full == "" {
		return s, false
	}
	return full + rest, true
}

// match is the length of the part of name that the registry's prefix stands
// for, 0 if it is about other names.
func (r *confRegistry) match(name string) int {
	if wild, ok := strings.CutPrefix(r.Prefix, "*"); ok {
		host, _, _ := strings.Cut(name, "/")
		if strings.HasSuffix(host, wild) && len(host) > len(wild) {
			return len(host)
		}
		return 0
	}
	if !strings.HasPrefix(name, r.Prefix) || len(name) > len(r.Prefix) && !strings.ContainsRune("/:@", rune(name[len(r.Prefix)])) {
		return 0
	}
	return len(r.Prefix)
}

// places is where the configuration says that a reference's content is; found
// is false if it says nothing about it.
func (c *registriesConf) places(ref Reference) (list []place, found bool, err error) {
	name := ref.String()
	var best *confRegistry
	for i := range c.Registries {
		r := &c.Registries[i]
		if r.match(name) > 0 && (best == nil || len(r.Prefix) > len(best.Prefix)) {
			best = r
		}
	}
	if best == nil {
		return nil, false, nil
	}
	if best.Blocked {
		return nil, true, fmt.Errorf("registries.conf blocks %s: %w", best.Prefix, fault.ErrUnauthorized)
	}
	rest := name[best.match(name):]
	at := func(location string) (Reference, error) {
		if location == "" {
			return ref, nil
		}
		moved, err := ParseReference(location + rest)
		if err != nil {
			return moved, fmt.Errorf("registries.conf, location %s: %w", redact(location), err)
		}
		if first, _, _ := strings.Cut(location, "/"); first != moved.Domain {
			return moved, fault.Usagef("registries.conf, location %s: no registry in it", redact(location))
		}
		return moved, nil
	}
	for _, m := range best.Mirrors {
		p := place{mirror: true, insecure: m.Insecure,
			tags:    m.PullFromMirror != "digest-only" && !best.MirrorByDigestOnly,
			digests: m.PullFromMirror != "tag-only"}
		if p.ref, err = at(m.Location); err != nil {
			return nil, true, err
		}
		list = append(list, p)
	}
	p := place{insecure: best.Insecure, tags: true, digests: true}
	if p.ref, err = at(best.Location); err != nil {
		return nil, true, err
	}
	return append(list, p), true, nil
}
