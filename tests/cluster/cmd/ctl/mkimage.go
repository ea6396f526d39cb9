package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// An OCI archive is a tar with one layer, itself a tar, and a few small JSON files that name each other by digest. The
// same input gives the same bytes.

func mkimageCommand(_ string, args []string) error {
	config := "{}"
	if len(args) == 4 {
		config = args[3]
		if !strings.HasPrefix(strings.TrimSpace(config), "{") {
			data, err := os.ReadFile(config)
			if err != nil {
				return err
			}
			config = string(data)
		}
	}
	return mkimage(args[0], args[1], args[2], config)
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(data))}
}

// mkimage makes an archive from a directory, whose files all become root's, or from a tar, which is taken as it is.
func mkimage(output, name, rootfs, config string) error {
	name, tag, err := fullName(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(rootfs)
	if err != nil {
		return err
	}
	if info.IsDir() {
		layer := output + ".layer"
		defer os.Remove(layer)
		if err := layerFromDir(layer, rootfs); err != nil {
			return err
		}
		rootfs = layer
	}
	layer, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	defer layer.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, layer)
	if err != nil {
		return err
	}
	layerInfo := descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: size}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}

	imageConfig, err := json.Marshal(map[string]any{
		"created": "1970-01-01T00:00:00Z", "architecture": runtime.GOARCH, "os": "linux", "config": json.RawMessage(config),
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerInfo.Digest}},
	})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	configInfo := describe("application/vnd.oci.image.config.v1+json", imageConfig)
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": configInfo, "layers": []descriptor{layerInfo}})
	if err != nil {
		return err
	}
	manifestInfo := describe(manifestType, manifest)
	manifestInfo.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifestInfo}})
	if err != nil {
		return err
	}

	file, err := os.Create(output + ".new")
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	add := func(name string, size int64, content io.Reader) {
		if err == nil {
			err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
		}
		if err == nil {
			_, err = io.Copy(archive, content)
		}
	}
	blob := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	add("oci-layout", int64(len(layout)), bytes.NewReader(layout))
	add("index.json", int64(len(index)), bytes.NewReader(index))
	add(blob(manifestInfo), manifestInfo.Size, bytes.NewReader(manifest))
	add(blob(configInfo), configInfo.Size, bytes.NewReader(imageConfig))
	add(blob(layerInfo), layerInfo.Size, layer)
	if err := firstError(err, archive.Close(), file.Close()); err != nil {
		return err
	}
	return os.Rename(output+".new", output)
}

// fullName spells a name out as containerd stores it: postgres:17 is docker.io/library/postgres:17.
func fullName(name string) (full, tag string, err error) {
	slash := strings.LastIndex(name, "/")
	colon := strings.LastIndex(name, ":")
	if colon <= slash || colon == len(name)-1 {
		return "", "", fmt.Errorf("image name %q has no tag", name)
	}
	domain, _, hasDomain := strings.Cut(name, "/")
	switch {
	case !hasDomain:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(domain, ".:") && domain != "localhost":
		name = "docker.io/" + name
	}
	return name, name[strings.LastIndex(name, ":")+1:], nil
}

func layerFromDir(output, root string) error {
	file, err := os.Create(output)
	if err != nil {
		return err
	}
	defer file.Close()
	layer := tar.NewWriter(file)
	links := map[uint64]string{}
	// WalkDir goes in lexical order.
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		header.Name = name
		if info.IsDir() {
			header.Name += "/"
		}
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		header.ModTime, header.AccessTime, header.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
		header.Format = tar.FormatUnknown
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && stat.Nlink > 1 {
			if first, seen := links[stat.Ino]; seen {
				header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			}
			links[stat.Ino] = name
		}
		if err := layer.WriteHeader(header); err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			return nil
		}
		content, err := os.Open(path)
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = io.Copy(layer, content)
		return err
	})
	return firstError(err, layer.Close(), file.Close())
}
