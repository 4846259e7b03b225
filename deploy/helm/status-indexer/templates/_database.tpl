{{/*
The connection to the database. Each template takes a dictionary: `context`, the chart's context, and `role`, the
name of the Secret with the role and the password, or empty for that of the daemon. `optional` is true
in a sidecar, where a missing Secret must not keep the pod from starting.
*/}}

{{- define "status-indexer.secretName" -}}
{{- .role | default .context.Values.metadatadb.existingSecret | default (include "status-indexer.fullname" .context) }}
{{- end }}

{{- define "status-indexer.hasPassword" -}}
{{- $db := .context.Values.metadatadb }}
{{- if or .role $db.existingSecret $db.password }}true{{ end }}
{{- end }}

{{/* One variable from a Secret: `name`, `secret`, `key`, `optional`. */}}
{{- define "status-indexer.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
      {{- if .optional }}
      optional: true
      {{- end }}
{{- end }}

{{- define "status-indexer.databaseEnv" -}}
{{- $values := .context.Values }}
{{- $db := $values.metadatadb }}
{{- $optional := .optional }}
{{- $role := .role }}
{{- $shared := $db.existingSecret }}
{{- $secret := include "status-indexer.secretName" . }}
{{- if $db.secretKeys.url }}
{{ include "status-indexer.secretVariable" (dict "name" "DATABASE_URL" "secret" $secret "key" $db.secretKeys.url "optional" $optional) }}
{{- else }}
{{- range $part, $default := dict "host" "" "port" "5432" "name" "metaflow" "user" "metaflow" }}
{{- $variable := printf "MF_METADATA_DB_%s" (upper $part) }}
{{- $value := get $db $part | toString }}
{{- if and (eq $part "user") $role }}
{{ include "status-indexer.secretVariable" (dict "name" $variable "secret" $role "key" (get $db.secretKeys $part) "optional" $optional) }}
{{- else if $value }}
- name: {{ $variable }}
  value: {{ $value | quote }}
{{- else if $shared }}
{{ include "status-indexer.secretVariable" (dict "name" $variable "secret" $shared "key" (get $db.secretKeys $part) "optional" $optional) }}
{{- else if and $default $db.host }}
- name: {{ $variable }}
  value: {{ $default | quote }}
{{- end }}
{{- end }}
{{- if include "status-indexer.hasPassword" . }}
{{- if $db.passwordFile }}
- name: MF_METADATA_DB_PSWD_FILE
  value: /etc/status-indexer/password/password
{{- else }}
{{ include "status-indexer.secretVariable" (dict "name" "MF_METADATA_DB_PSWD" "secret" $secret "key" $db.secretKeys.password "optional" $optional) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $db.schema }}
- name: DB_SCHEMA_NAME
  value: {{ . | quote }}
{{- end }}
{{- with $db.ssl.mode }}
- name: MF_METADATA_DB_SSL_MODE
  value: {{ . }}
{{- end }}
{{- if $db.ssl.existingSecret }}
{{- range $variable, $key := dict "ROOT_CERT" $db.ssl.rootCert "CERT" $db.ssl.cert "KEY" $db.ssl.key }}
{{- if $key }}
- name: MF_METADATA_DB_SSL_{{ $variable }}_PATH
  value: /etc/status-indexer/tls/{{ $key }}
{{- end }}
{{- end }}
{{- end }}
- name: RUN_INACTIVE_CUTOFF_TIME
  value: {{ $values.runInactiveCutoffTime | int64 | quote }}
{{- with $values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "status-indexer.passwordVolume" -}}
{{- if .role }}migration-password{{ else }}status-indexer-password{{ end }}
{{- end }}

{{- define "status-indexer.mountsPassword" -}}
{{- $db := .context.Values.metadatadb }}
{{- if and $db.passwordFile (not $db.secretKeys.url) (include "status-indexer.hasPassword" .) }}true{{ end }}
{{- end }}

{{- define "status-indexer.databaseVolumes" -}}
{{- $db := .context.Values.metadatadb }}
{{- if include "status-indexer.mountsPassword" . }}
- name: {{ include "status-indexer.passwordVolume" . }}
  secret:
    secretName: {{ include "status-indexer.secretName" . }}
    {{- if .optional }}
    optional: true
    {{- end }}
    items:
      - key: {{ $db.secretKeys.password }}
        path: password
{{- end }}
{{- end }}

{{- define "status-indexer.otherVolumes" -}}
{{- with .context.Values.metadatadb.ssl.existingSecret }}
- name: status-indexer-tls
  secret:
    secretName: {{ . }}
    {{- if $.optional }}
    optional: true
    {{- end }}
{{- end }}
{{- with .context.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "status-indexer.databaseMounts" -}}
{{- if include "status-indexer.mountsPassword" . }}
- name: {{ include "status-indexer.passwordVolume" . }}
  mountPath: /etc/status-indexer/password
  readOnly: true
{{- end }}
{{- if .context.Values.metadatadb.ssl.existingSecret }}
- name: status-indexer-tls
  mountPath: /etc/status-indexer/tls
  readOnly: true
{{- end }}
{{- with .context.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
